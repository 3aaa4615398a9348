"""Attention rollout, only the rows that are wanted.

R = product over layers, last layer first, of (r I + (1 - r) A_l) with A_l the head-mean attention (Abnar & Zuidema
2020, https://arxiv.org/abs/2005.00928). The row of a target is that of its predicting position, so the product is
carried from the top layer down as [target, seq] and no layer's map is ever whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._attention import BLOCK, LayerAttention, capture_attention
from llmxai.methods._registry import method
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout, predicting_position


@method(
    "attention_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928",
)
def attention_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Share of attention that reaches every token from each target's predicting position, through all layers.

    `residual` is the share of each layer that stays in place. The null is the same product with every attention row
    uniform over what its mask allows. Rows sum to 1 minus `lost_mass`.

    Raises OptionError for a residual outside [0, 1) and UnsupportedModelError for layers without softmax attention.
    """
    if not 0 <= residual < 1:
        raise OptionError(f"residual is {residual}; expected a share from 0 up to, but not including, 1.")
    positions = [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]
    layers = capture_attention(loaded, generation.ids[: positions[-1] + 1])
    rows = _roll(layers, positions, residual, lambda layer: layer.rows)
    null = _roll(layers, positions, residual, _uniform)
    pad = (0, len(generation.ids) - rows.shape[1])
    return Rollout(
        method="attention_rollout",
        rows=torch.nn.functional.pad(rows, pad),
        null_rows=torch.nn.functional.pad(null, pad),
        lost_mass=(1 - rows.sum(dim=1)).clamp(min=0),
        settings={"residual": residual, "head_fusion": "mean", "layers": len(layers)},
    )


def _uniform(layer: LayerAttention) -> Callable[[int, int], Tensor]:
    def rows(first: int, end: int) -> Tensor:
        allowed = layer.allowed(first, end)
        return allowed / allowed.sum(dim=1, keepdim=True)

    return rows


def _roll(
    layers: Sequence[LayerAttention],
    positions: Sequence[int],
    residual: float,
    rows_of: Callable[[LayerAttention], Callable[[int, int], Tensor]],
) -> Float[Tensor, "target seq"]:
    n = positions[-1] + 1
    state = torch.zeros(len(positions), n, dtype=torch.float64)
    state[torch.arange(len(positions)), torch.tensor(positions)] = 1.0
    for layer in reversed(layers):
        rows = rows_of(layer)
        moved = torch.zeros_like(state)
        for first in range(0, n, BLOCK):
            end = min(first + BLOCK, n)
            moved += state[:, first:end] @ rows(first, end).double().cpu()
        state = residual * state + (1 - residual) * moved
    return state
