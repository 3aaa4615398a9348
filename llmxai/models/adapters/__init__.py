"""One adapter per kind of model, each a module with the same functions.

| function | result |
| --- | --- |
| `require_explainable(model, name)` | raises UnsupportedModelError if its answers cannot be explained |
| `logits(model, embeds, ids, positions, prefix, source)` | logits at positions, differentiable in the embeddings |
| `stacks(model)` | its stacks of layers |
| `keeps_prefix(model)` | whether keys and values of a fixed beginning can be cached |
| `initial_rows(model, name, generation, positions)` | the rows that an attention rollout starts from |
| `answers(model, name, prompts, decoding, room, tokenizer)` | the model's own answers as ids with their log-probs |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from llmxai.models.adapters import causal, classifier, encoder_decoder
from llmxai.models.embedding import input_device, on_device
from llmxai.models.families import ModelKind, kind_of
from llmxai.models.forward import keys_and_values
from llmxai.names import Progress, quiet
from llmxai.settings import Decoding
from llmxai.types import Answer, Generation, PromptTokens


@runtime_checkable
class Adapter(Protocol):
    """The functions of the three modules."""

    def require_explainable(self, model: PreTrainedModel, *, name: str) -> None: ...

    def logits(
        self,
        model: PreTrainedModel,
        inputs_embeds: Float[Tensor, "batch seq width"] | None,
        *,
        ids: Int[Tensor, "batch seq"],
        positions: Sequence[int],
        prefix: DynamicCache | None,
        source: int,
    ) -> Float[Tensor, "batch position vocab"]: ...

    def stacks(self, model: PreTrainedModel) -> list[nn.ModuleList]: ...

    def keeps_prefix(self, model: PreTrainedModel) -> bool: ...

    def initial_rows(
        self, model: PreTrainedModel, *, name: str, generation: Generation, positions: Sequence[Sequence[int]]
    ) -> Float[Tensor, "target seen"]: ...

    def answers(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        prompts: Sequence[PromptTokens],
        decoding: Decoding,
        room: int,
        tokenizer: PreTrainedTokenizerBase,
        progress: Progress = quiet,
    ) -> list[Answer]: ...


ADAPTERS: dict[ModelKind, Adapter] = {
    ModelKind.CAUSAL: causal,
    ModelKind.CLASSIFIER: classifier,
    ModelKind.ENCODER_DECODER: encoder_decoder,
}


def adapter_of(model: PreTrainedModel) -> Adapter:
    """The adapter of a model in memory."""
    return ADAPTERS[kind_of(model)]


def forward_logits(
    model: PreTrainedModel,
    inputs_embeds: Float[Tensor, "batch seq width"] | None,
    *,
    ids: Sequence[int] | Int[Tensor, "... seq"],
    positions: Sequence[int],
    prefix: DynamicCache | None = None,
    source: int = 0,
) -> Float[Tensor, "batch position vocab"]:
    """Logits at `positions` (indices into seq) only; differentiable in `inputs_embeds`.

    The model reads `ids`, [seq] or [batch, seq], with `inputs_embeds` in place of their embeddings (`replaced`); None
    leaves its own.
    `prefix` holds the keys and values of the tokens before seq, for a batch of one; it is not changed. `source`: for an
    encoder-decoder, how many of the embeddings go into the encoder. Raises UnsupportedModelError for a model whose
    embeddings cannot be replaced, and from any error in its own code.
    """
    rows = on_device(ids, input_device(model))
    rows = rows.reshape(-1, rows.shape[-1]) if inputs_embeds is None else rows.expand(len(inputs_embeds), -1)
    return adapter_of(model).logits(model, inputs_embeds, ids=rows, positions=positions, prefix=prefix, source=source)


def layer_stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The only stack of layers, or the encoder's and the decoder's."""
    return adapter_of(model).stacks(model)


def prefix_cache(
    model: PreTrainedModel, inputs_embeds: Float[Tensor, "1 seq width"], ids: Sequence[int]
) -> DynamicCache | None:
    """Keys and values of a fixed beginning; None if it is empty or the model cannot cache it."""
    if not inputs_embeds.shape[1] or not adapter_of(model).keeps_prefix(model):
        return None
    return keys_and_values(model, inputs_embeds, torch.tensor([list(ids)], device=input_device(model)))
