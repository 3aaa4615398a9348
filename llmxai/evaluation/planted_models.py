"""Two models with known sources: one in closed form, one trained locally on a planted task.

Closed form: logits at position p = W (sum over i <= p of E[id_i]). For F = logit(answer) - logit(foil), token i
contributes exactly <W[answer] - W[foil], E[id_i] - b> against a baseline b: integrated gradients, gradient x input
(b = 0), DeepLIFT, Shapley values and leave-one-out all agree, and a removal changes F by the sum of the removed parts
(unless nothing would be left; then a single space remains).

Trained: the task is to repeat the word after the marker. Two layers of four heads, trained on the CPU from a fixed seed
until the model answers nearly every question of a held-out set (seconds on an idle machine), then kept in the user's
cache as an ordinary HuggingFace folder, keyed by everything that determines its weights. Only two tokens of a question
determine the answer: the marker and the word after it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from llmxai.errors import NumericalError
from llmxai.evaluation.questions import ASK, MARKER, WORDS, marker_text
from llmxai.models import LoadedModel, wrap
from llmxai.models.finding import cache_folder, cached_folder

HIDDEN = 16
PLAIN = "Hello"
"""A word of plain text, by which `load` recognises a real vocabulary."""


class SumModel(PreTrainedModel):
    """logits at position p = W (sum over i <= p of E[id_i]); completely linear."""

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
    """One token per word; every word except the first includes its leading space. A single space is its own token."""
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
        with torch.no_grad():  # a word has the same embedding with and without its space
            for table in (model.embeddings.weight, model.head.weight):
                table[42:82] = table[2:42]
    return wrap(model.eval().requires_grad_(False), tokenizer, name="closed_form")


def build() -> LoadedModel:
    """The model, the same every time; a copy, so changes do not affect other callers."""
    return copy.copy(_built())


def contributions(loaded: LoadedModel, words: Sequence[str], *, answer: str, foil: str) -> list[float]:
    """<W[answer] - W[foil], E[word]> of every word: its contribution to F with a baseline of 0."""
    to_id = loaded.tokenizer.convert_tokens_to_ids
    model = loaded.model
    direction = model.head.weight[to_id(f" {answer}")] - model.head.weight[to_id(f" {foil}")]
    return [float(direction @ model.embeddings.weight[to_id(f" {word}")]) for word in words]


Report = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Training:
    """Everything that determines the weights, besides the versions of the libraries."""

    version: int = 2
    seed: int = 0
    hidden: int = 32
    layers: int = 2
    heads: int = 4
    batch: int = 32
    steps: int = 1500
    check_every: int = 25
    enough: float = 0.995
    """Share of the held-out questions that the model must answer."""
    learning_rate: float = 0.005
    longest: int = 14
    """Longest question, in words."""


TRAINING = Training()


def marker_folder(*, report: Report = lambda _stage, _done, _all: None) -> Path:
    """The folder of the trained model; trained on the first call."""
    text = json.dumps([asdict(TRAINING), WORDS], sort_keys=True)

    def make(scratch: Path) -> None:
        model, tokenizer = train(report=report)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)

    return cached_folder(cache_folder() / "marker" / hashlib.sha256(text.encode()).hexdigest()[:16], make)


def train(*, report: Report = lambda _stage, _done, _all: None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train from the fixed seed. Raises NumericalError if the model never answers enough of the held-out set."""
    tokenizer = word_tokenizer([MARKER, ASK, *WORDS])
    draw = Random(TRAINING.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads cost more than they compute here, and one gives the same weights everywhere
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TRAINING.seed)
            model = LlamaForCausalLM(_config(len(tokenizer)))
            optimiser = torch.optim.AdamW(model.parameters(), lr=TRAINING.learning_rate, betas=(0.9, 0.98))
            held_out = _batch(tokenizer, Random(TRAINING.seed + 1), length=12, rows=256)
            for step in range(TRAINING.steps):
                if step % TRAINING.check_every == 0:
                    report("training the marker model", step, TRAINING.steps)
                    if accuracy(model, held_out) >= TRAINING.enough:
                        return model.eval().requires_grad_(False), tokenizer
                length = draw.randint(3, TRAINING.longest)
                _step(model, optimiser, _batch(tokenizer, draw, length=length, rows=TRAINING.batch), step)
    finally:
        torch.set_num_threads(threads)
    raise NumericalError(
        f"The marker model did not learn its task within {TRAINING.steps} steps. That should not happen with "
        f"the pinned versions: check the installation of torch and transformers."
    )


def _step(model: PreTrainedModel, optimiser: torch.optim.Optimizer, ids: Int[Tensor, "row seq"], step: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = TRAINING.learning_rate * min(1.0, (step + 1) / 50)
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids[:, :-1]).logits[:, -1], ids[:, -1])
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


@torch.no_grad()
def accuracy(model: PreTrainedModel, ids: Int[Tensor, "row seq"]) -> float:
    """Share of rows whose last token the model ranks first."""
    return float((model(input_ids=ids[:, :-1]).logits[:, -1].argmax(dim=-1) == ids[:, -1]).float().mean())


def _config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=TRAINING.hidden,
        intermediate_size=2 * TRAINING.hidden,
        num_hidden_layers=TRAINING.layers,
        num_attention_heads=TRAINING.heads,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )


def _batch(tokenizer: PreTrainedTokenizerFast, draw: Random, *, length: int, rows: int) -> Int[Tensor, "row seq"]:
    drawn = [marker_text(draw, length) for _ in range(rows)]
    return torch.tensor([tokenizer(f"{text} {word}")["input_ids"] for text, word, _ in drawn])
