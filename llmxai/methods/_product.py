"""The product over layers that every rollout variant is made of, row by wanted row, from the top layer down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.methods._attention import AttentionCall, Fuse, LayerAttention, Watch, capture_attention, mean_of_heads
from llmxai.methods._curve import CurveRecorder
from llmxai.models import Kind, LoadedModel
from llmxai.types import Generation, Rollout, predicting_position

TINY = 1e-30


def max_of_heads(weights: Tensor, _call: AttentionCall | None, _keys: slice) -> Tensor:
    return _with_sums_of_the_mean(weights.amax(dim=0), weights)


def min_of_heads(weights: Tensor, _call: AttentionCall | None, _keys: slice) -> Tensor:
    return _with_sums_of_the_mean(weights.amin(dim=0), weights)


FUSIONS: Mapping[str, Fuse] = {"mean": mean_of_heads, "max": max_of_heads, "min": min_of_heads}


def _with_sums_of_the_mean(fused: Tensor, weights: Tensor) -> Tensor:
    """Rows scaled back to what they sum to in the mean of the heads: 1, or less where a sink takes some."""
    wanted = weights.sum(dim=(0, 2))[:, None] / len(weights)
    return fused * (wanted / fused.sum(dim=1, keepdim=True).clamp(min=TINY))


def require_share(residual: float) -> None:
    """Raise OptionError for a residual outside [0, 1)."""
    if not 0 <= residual < 1:
        raise OptionError(f"residual is {residual}; expected a share from 0 up to, but not including, 1.")


def target_positions(generation: Generation) -> list[int]:
    """The predicting position of every generated token."""
    return [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]


def starts(loaded: LoadedModel, generation: Generation) -> Float[Tensor, "target seq"]:
    """Rows that a rollout begins with: 1 at the predicting position, or at what a classifier's head reads.

    Where the head reads several positions (a mean), each has an equal part. Raises UnsupportedModelError where what it
    reads is unknown.
    """
    positions = target_positions(generation)
    if loaded.kind is not Kind.CLASSIFIER:
        return one_hot(positions)
    if not generation.read_at:
        raise UnsupportedModelError(
            f"{loaded.name}: the layers of {type(loaded.model).__name__} cannot be told apart, so the position that "
            f"its classifier reads is unknown, and attention rollout has nowhere to begin; integrated gradients work."
        )
    row = torch.zeros(1, positions[-1] + 1, dtype=torch.float64)
    row[0, list(generation.read_at)] = 1 / len(generation.read_at)
    return row


def roll_out(
    loaded: LoadedModel,
    generation: Generation,
    *,
    name: str,
    residual: float | Sequence[Float[Tensor, " seq"]],
    fuse: Fuse = mean_of_heads,
    watch: Watch | None = None,
    sink_removed: bool = False,
    last_layers: int | None = None,
    settings: Mapping[str, object],
) -> Rollout:
    """R = product over the last `last_layers` layers (all by default) of (r I + (1 - r) A_l), the targets' rows.

    `residual` is r, one number or one a layer and query. `sink_removed` hides key 0 and scales each row to sum 1 again.
    """
    if not isinstance(residual, Sequence):
        require_share(residual)
    if last_layers is not None and last_layers < 1:
        raise OptionError(f"last_layers is {last_layers}; expected at least 1.")
    positions = target_positions(generation)
    rows = starts(loaded, generation)
    layers = capture_attention(loaded, generation.ids[: positions[-1] + 1], fuse=fuse, watch=watch)
    shares: list[float | Tensor] = list(residual) if isinstance(residual, Sequence) else [residual] * len(layers)
    count = min(last_layers or len(layers), len(layers))
    null = rows.clone()
    recorder = CurveRecorder.of(positions)
    for layer, r in list(zip(layers, shares, strict=True))[: -count - 1 : -1]:
        visible = layer.visible.without_sink() if sink_removed else layer.visible
        rows = r * rows + carry(layer, (1 - r) * rows, without_sink if sink_removed else as_it_is)
        null = r * null + visible.spread((1 - r) * null)
        recorder.add(rows, null)
    return Rollout(
        method=name,
        rows=padded(rows, generation),
        null_rows=padded(null, generation),
        lost_mass=(1 - rows.sum(dim=1)).clamp(min=0),
        curve=recorder.curve(),
        settings={**settings, "layers": count},
    )


def refused_rollout(name: str, generation: Generation, *, reason: str) -> Rollout:
    """What stands in the place of a rollout that is not defined for the model: no mass anywhere, and the reason."""
    rows = torch.zeros(generation.n_targets, len(generation.ids), dtype=torch.float64)
    return Rollout(
        method=name,
        rows=rows,
        null_rows=rows,
        lost_mass=torch.ones(len(rows), dtype=rows.dtype),
        curve=None,
        settings={"refused": reason},
        refused=reason,
    )


def one_hot(positions: Sequence[int]) -> Float[Tensor, "target seq"]:
    """Rows of the identity, float64, as long as the last target sees."""
    return torch.eye(positions[-1] + 1, dtype=torch.float64)[list(positions)]


def padded(rows: Float[Tensor, "target seen"], generation: Generation) -> Float[Tensor, "target seq"]:
    """With a 0 for each token after the last predicting position."""
    return torch.nn.functional.pad(rows, (0, len(generation.ids) - rows.shape[1]))


def carry(
    layer: LayerAttention,
    mass: Float[Tensor, "target seq"],
    change: Callable[[Tensor, slice, slice], Tensor],
) -> Float[Tensor, "target seq"]:
    """`mass` times the layer's attention matrix, block by block; blocks of queries without mass are not computed."""
    moved = torch.zeros_like(mass)
    for queries, keys in layer.blocks():
        if mass[:, queries].any():
            rows = change(layer.rows(queries, keys), queries, keys)
            moved[:, keys] += mass[:, queries] @ rows.double().cpu()
    return moved


def as_it_is(rows: Tensor, _queries: slice, _keys: slice) -> Tensor:
    """No change to a block of attention rows."""
    return rows


def without_sink(rows: Float[Tensor, "query key"], queries: slice, keys: slice) -> Float[Tensor, "query key"]:
    """Without key 0, each row scaled to sum 1; the query that sees key 0 alone keeps it."""
    if keys.start > 0:
        return rows / rows.sum(dim=1, keepdim=True).clamp(min=TINY)
    rest = rows.clone()
    rest[1 if queries.start == 0 else 0 :, 0] = 0
    return rest / rest.sum(dim=1, keepdim=True).clamp(min=TINY)
