"""Attention weighted by the size of what it moves: the norm of weight times transformed value.

||sum over heads of alpha_h(i, j) f_h(x_j)|| with f_h(x_j) the value of head h after the output projection (Kobayashi
et al. 2020, https://arxiv.org/abs/2004.10102, eq. 4, summed over heads). The squared norm is alpha' G_j alpha with G_j
the [head, head] inner products of the f_h(x_j), so the vectors of a block of queries are never formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmxai.errors import UnsupportedModelError
from llmxai.methods.attention.capture import AttentionCall, Fuse, at_least_float32, read
from llmxai.models import LoadedModel
from llmxai.models.families import OUTPUT_PROJECTIONS, family_of, residual_multiplier
from llmxai.models.forward import first_of, frozen_eval, transformer_layers

KEYS = 64
"""Keys whose transformed values exist at once."""
TINY = 1e-30


def value_norms() -> Fuse:
    """A fusion of heads: rows of ||sum over heads of weight x transformed value||, scaled to sum 1."""
    latest: dict[nn.Module, Tensor] = {}  # the blocks of one layer arrive consecutively

    def fuse(weights: Tensor, call: AttentionCall | None, keys: slice) -> Tensor:
        assert call is not None  # guaranteed by needs_values
        if call.module not in latest:
            latest.clear()
            latest[call.module] = _inner_products(call)
        gram = latest[call.module][keys]
        by_key = weights.permute(2, 1, 0)  # [key, query, head]
        squares = ((by_key @ gram) * by_key).sum(dim=-1).T
        norms = squares.clamp(min=0).sqrt()
        return norms / norms.sum(dim=1, keepdim=True).clamp(min=TINY)

    return fuse


def output_projection(module: nn.Module) -> nn.Module:
    """The linear map after attention; raises UnsupportedModelError if it has none of the usual names."""
    for name in OUTPUT_PROJECTIONS:
        found = getattr(module, name, None)
        if isinstance(found, nn.Module):
            return found
    raise UnsupportedModelError(
        f"{type(module).__name__} has no output projection named {', '.join(OUTPUT_PROJECTIONS)}, so its values cannot "
        f"be weighted. Choose a method that reads only attention weights."
    )


def _inner_products(call: AttentionCall) -> Float[Tensor, "key head head"]:
    """G: inner products of the transformed values of all heads, for every key."""
    projection, heads = output_projection(call.module), call.query.shape[1]
    value = call.value[0].repeat_interleave(heads // call.value.shape[1], dim=0)  # [head, key, channel]
    parts = []
    with torch.no_grad():
        shift = projection(value.new_zeros(1, heads * value.shape[2]))
        for first in range(0, value.shape[1], KEYS):
            block = value[:, first : first + KEYS]
            alone = block.new_zeros(heads, block.shape[1], heads, block.shape[2])
            for head in range(heads):
                alone[head, :, head] = block[head]
            moved = at_least_float32(projection(alone.flatten(2)) - shift)  # [head, key, hidden]
            parts.append(torch.einsum("akc,bkc->kab", moved, moved))
    return torch.cat(parts)


@contextmanager
def projections_watched() -> Iterator[Callable[[AttentionCall, Tensor], None]]:
    """Check that every reported (call, output) enters its projection unchanged: no gate, no norm.

    Raises UnsupportedModelError if one does not.
    """
    handles = []
    unseen: set[nn.Module] = set()

    def watch(call: AttentionCall, output: Tensor) -> None:
        projection = output_projection(call.module)
        unseen.add(projection)

        def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if torch.equal(inputs[0].flatten(), output.flatten()):
                unseen.discard(projection)

        handles.append(projection.register_forward_pre_hook(look))

    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
    if unseen:
        raise UnsupportedModelError(
            f"{len(unseen)} layers change the output of attention before their projection (a gate or a norm), so the "
            f"norm of a single value is not defined. Choose a method that reads only attention weights."
        )


class _Streams:
    """The input of one decoder layer, and what its attention adds to it."""

    stream: Tensor
    added: Tensor

    def __init__(self, layer: nn.Module, attention: nn.Module, *, residual_inside: bool) -> None:
        self.residual_inside = residual_inside
        self.handles = [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            attention.register_forward_hook(self._attended, with_kwargs=True),
            *(child.register_forward_hook(self._followed) for child in layer.children() if child is not attention),
        ]

    def _enter(self, _layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.stream = arguments[0] if arguments else options["hidden_states"]
        self.added = torch.empty(0)

    def _attended(self, _module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        self.added = first_of(output)
        if self.residual_inside:
            self.added = self.added - (options["residual"] if "residual" in options else arguments[1])

    def _followed(self, _module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if arguments and arguments[0] is self.added:  # a norm between attention and the stream (Gemma 2, OLMo 2)
            self.added = first_of(output)


def measured_residual(loaded: LoadedModel, ids: Sequence[int]) -> list[Float[Tensor, " seq"]]:
    """||x|| / (||x|| + ||attention||) for every layer and position, float64 on the CPU; one forward pass."""
    model = loaded.model
    scale, inside = residual_multiplier(model.config), family_of(model.config).attention_adds_residual
    streams: list[_Streams] = []
    try:
        for layer in transformer_layers(model):
            streams.append(_Streams(layer, _attention_of(layer), residual_inside=inside))
        with frozen_eval(model), torch.no_grad():
            read(model, ids)
    finally:
        for stream in streams:
            for handle in stream.handles:
                handle.remove()
    shares = []
    for stream in streams:
        kept, added = (x[0].double().norm(dim=-1).cpu() for x in (stream.stream, scale * stream.added))
        shares.append(kept / (kept + added).clamp(min=1e-30))
    return shares


def _attention_of(layer: nn.Module) -> nn.Module:
    for child in layer.children():
        if "Attention" in type(child).__name__:
            return child
    raise UnsupportedModelError(
        f"{type(layer).__name__} has no attention module of its own, so its residual share cannot be measured. Choose "
        f"attention_rollout with a fixed residual."
    )
