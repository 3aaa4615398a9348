"""A causal language model whose logits are sums over tokens, so that every attribution is known in closed form.

logits at position p = W (sum over i <= p of E[id_i]). For F = logit(answer) - logit(foil), token i contributes exactly
<W[answer] - W[foil], E[id_i] - b> against a baseline b: integrated gradients, gradient x input (b = 0), DeepLIFT,
Shapley values and leave-one-out all agree, and a removal changes F by the sum of what is removed (unless nothing would
be left: a space then stands alone).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from llmxai.models import LoadedModel, wrap

HIDDEN = 16
PLAIN = "Hello"
"""A word of plain text, by which `load` tells a real vocabulary from one that was made up."""


class SumModel(PreTrainedModel):
    """logits at position p = W (sum over i <= p of E[id_i]), without anything that is not linear."""

    config_class = PreTrainedConfig
    _is_stateful = True  # no keys and values to keep

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Float[Tensor, "batch seq hidden"] | None = None,
        **_unused: Any,
    ) -> CausalLMOutput:
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return CausalLMOutput(logits=self.head(x.cumsum(dim=1)))


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word; every word but the first of a text carries its space. A space alone is a token of its own."""
    vocabulary = ["<unk>", " ", *words, *(f" {word}" for word in words), PLAIN]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_next")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False)


@cache
def _built() -> LoadedModel:
    tokenizer = word_tokenizer([f"w{i}" for i in range(40)])
    config = PreTrainedConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=0, max_position_embeddings=512
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SumModel(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        with torch.no_grad():  # a word means the same with and without its space
            for table in (model.embeddings.weight, model.head.weight):
                table[42:82] = table[2:42]
    return wrap(model.eval().requires_grad_(False), tokenizer, name="closed_form")


def build() -> LoadedModel:
    """The model, the same every time; a copy, so that nobody's changes reach another."""
    return copy.copy(_built())


def contributions(loaded: LoadedModel, words: Sequence[str], *, answer: str, foil: str) -> list[float]:
    """<W[answer] - W[foil], E[word]> of every word: what it adds to F against a baseline of 0."""
    to_id = loaded.tokenizer.convert_tokens_to_ids
    model = loaded.model
    direction = model.head.weight[to_id(f" {answer}")] - model.head.weight[to_id(f" {foil}")]
    return [float(direction @ model.embeddings.weight[to_id(f" {word}")]) for word in words]
