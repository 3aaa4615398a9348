"""Head-mean attention of every layer in blocks of queries, never as a [layer, head, query, key] tensor.

A forward pass runs with an attention function of ours behind transformers' `AttentionInterface`. It keeps each layer's
queries and keys (after rotary) and calls the architecture's own eager function, so that mask, window, scale, soft cap
and sinks are the architecture's and not ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from llmxai.errors import UnsupportedModelError
from llmxai.models import LoadedModel, embed, transformer_depth
from llmxai.models.seams import rollout_refusal, undisturbed

CAPTURE = "llmxai_capture"
BLOCK = 512
"""Queries whose attention rows exist at the same time."""


@dataclass(frozen=True)
class LayerAttention:
    """One layer's attention, computed row block by row block when asked."""

    rows: Callable[[int, int], Float[Tensor, "query key"]]
    """Head-mean attention of queries [first, end)."""
    allowed: Callable[[int, int], Float[Tensor, "query key"]]
    """1 where the layer's mask lets a query see a key, else 0."""


def capture_attention(loaded: LoadedModel, ids: Sequence[int]) -> list[LayerAttention]:
    """Every layer's attention over `ids`, first layer first.

    Raises UnsupportedModelError where a layer has no softmax attention (linear attention, state space).
    """
    if (refusal := rollout_refusal(loaded.model.config)) is not None:
        raise UnsupportedModelError(f"{loaded.name}: {refusal}")
    model = loaded.model
    with undisturbed(model), torch.no_grad():
        if getattr(model, "_supports_attention_backend", False):
            layers = _captured(model, embed(model, ids)[None])
        else:
            layers = _eager_maps(model, embed(model, ids)[None])
    if len(layers) != transformer_depth(model):
        raise UnsupportedModelError(
            f"{loaded.name}: {transformer_depth(model) - len(layers)} of its {transformer_depth(model)} layers have "
            f"no softmax attention (linear attention or state space), so attention rollout is not defined for it."
        )
    return layers


def _captured(model: PreTrainedModel, embeds: Tensor) -> list[LayerAttention]:
    layers: list[LayerAttention] = []

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        layers.append(_layer(eager, module, query, key, value, attention_mask, options))
        outputs = [
            eager(module, query[:, :, a:b], key, value, _mask_rows(attention_mask, a, b), **options)[0]
            for a, b in _blocks(query.shape[2])
        ]
        return torch.cat(outputs, dim=1), None

    with _attention_function(model, attend):
        model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
    return layers


def _layer(
    eager: Callable[..., tuple[Tensor, Tensor]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
) -> LayerAttention:
    thin = value[..., :1]  # the eager function wants values; one column is enough for its weights

    def rows(first: int, end: int) -> Tensor:
        with torch.no_grad():
            block = query[:, :, first:end]
            weights = eager(module, block, key, thin, _mask_rows(mask, first, end), **options)[1]
        return weights[0].float().mean(dim=0) if weights.dtype != torch.float64 else weights[0].mean(dim=0)

    def allowed(first: int, end: int) -> Tensor:
        queries = torch.arange(first, end, device=key.device)[:, None]
        causal = torch.arange(key.shape[2], device=key.device) <= queries
        block = _mask_rows(mask, first, end)
        return (causal if block is None else causal & (block[0, 0] > -1)).float()

    return LayerAttention(rows=rows, allowed=allowed)


def _eager_maps(model: PreTrainedModel, embeds: Tensor) -> list[LayerAttention]:
    """For architectures outside the attention interface (BLOOM, Falcon): their own eager maps, head mean at once."""
    with _configured_as_eager(model):
        maps = model(inputs_embeds=embeds, use_cache=False, output_attentions=True).attentions
    means = [m[0].mean(dim=0) for m in maps if m is not None]

    def layer(mean: Tensor) -> LayerAttention:
        return LayerAttention(
            rows=lambda first, end: mean[first:end],
            allowed=lambda first, end: torch.ones_like(mean).tril()[first:end],
        )

    return [layer(mean) for mean in means]


def _mask_rows(mask: Tensor | None, first: int, end: int) -> Tensor | None:
    return None if mask is None else mask[:, :, first:end]


def _blocks(n: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + BLOCK, n)) for first in range(0, n, BLOCK))


@contextmanager
def _attention_function(model: PreTrainedModel, function: Callable[..., Any]) -> Iterator[None]:
    """Let `model` attend with `function`; registry and model are put back afterwards."""
    AttentionInterface.register(CAPTURE, function)
    AttentionMaskInterface.register(CAPTURE, eager_mask)
    try:
        with _attention_implementation(model, CAPTURE):
            yield
    finally:
        AttentionInterface._global_mapping.pop(CAPTURE, None)
        AttentionMaskInterface._global_mapping.pop(CAPTURE, None)


@contextmanager
def _attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _configured_as_eager(model: PreTrainedModel) -> Iterator[None]:
    """Let the configuration say eager: these models refuse `set_attn_implementation`, and read it at every forward."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name
