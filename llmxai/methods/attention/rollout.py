"""The product over layers that every rollout variant is made of, row by wanted row, from the top layer down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods.attention.capture import (
    AttentionCall,
    Fuse,
    LayerAttention,
    Watch,
    capture_attention,
    mean_of_heads,
)
from llmxai.methods.attention.dilution import CurveRecorder
from llmxai.methods.attention.encoder_decoder import roll_out_two_sides
from llmxai.methods.attention.rows import padded, starts
from llmxai.methods.attention.weighting import measured_residual, projections_watched, value_norms
from llmxai.methods.registry import method
from llmxai.methods.targets import target_positions
from llmxai.models import LoadedModel, ModelKind
from llmxai.types import Generation, Rollout

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


@method(
    "attention_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928",
)
def attention_rollout(
    loaded: LoadedModel, generation: Generation, *, residual: float = 0.5, head_fusion: str = "mean"
) -> Rollout:
    """Share of attention that reaches every token from each target's predicting position, through all layers.

    `residual` is the share of each layer that stays in place; `head_fusion` is how heads become one map: mean, or max
    or min scaled back to the sums of the mean. The null is the same product with every attention row uniform over
    what its mask allows. Rows sum to 1 minus `lost_mass`. Of an encoder-decoder, the product goes on from the decoder's
    self- and cross-attention, each with its own residual share, through the encoder (`_two_sides`).

    Raises OptionError for a residual outside [0, 1) or an unknown fusion, and UnsupportedModelError for layers without
    softmax attention.
    """
    if head_fusion not in FUSIONS:
        raise OptionError(f"head_fusion {head_fusion!r} is unknown. Known: {', '.join(FUSIONS)}.")
    if loaded.kind is ModelKind.ENCODER_DECODER:
        require_share(residual)
        return roll_out_two_sides(
            loaded,
            generation,
            name="attention_rollout",
            residual=residual,
            fuse=FUSIONS[head_fusion],
            settings={"residual": residual, "head_fusion": head_fusion},
        )
    return roll_out(
        loaded,
        generation,
        name="attention_rollout",
        residual=residual,
        fuse=FUSIONS[head_fusion],
        settings={"residual": residual, "head_fusion": head_fusion},
    )


@method(
    "max_head_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928, heads fused by their maximum",
)
def max_head_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Rollout of the maximum over heads of each attention weight, rows scaled to the sums that the mean would have.

    Rows sum to 1 minus `lost_mass`. Raises OptionError for a residual outside [0, 1).
    """
    return roll_out(
        loaded,
        generation,
        name="max_head_rollout",
        residual=residual,
        fuse=FUSIONS["max"],
        settings={"residual": residual, "head_fusion": "max"},
    )


@method(
    "min_head_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928, heads fused by their minimum",
)
def min_head_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Rollout of the minimum over heads of each attention weight, rows scaled to the sums that the mean would have.

    Rows sum to 1 minus `lost_mass`. Raises OptionError for a residual outside [0, 1).
    """
    return roll_out(
        loaded,
        generation,
        name="min_head_rollout",
        residual=residual,
        fuse=FUSIONS["min"],
        settings={"residual": residual, "head_fusion": "min"},
    )


@method(
    "last_layer_attention",
    needs={"attentions"},
    source="raw attention, the baseline of Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928",
)
def last_layer_attention(loaded: LoadedModel, generation: Generation) -> Rollout:
    """The last layer's attention from each target's predicting position, mean over heads.

    Rows sum to 1 minus `lost_mass`; the null is uniform attention; there is no curve.
    """
    rollout = roll_out(
        loaded,
        generation,
        name="last_layer_attention",
        residual=0.0,
        last_layers=1,
        settings={"head_fusion": "mean"},
    )
    return replace(rollout, curve=None)


@method(
    "last_layers_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928, the product cut short",
)
def last_layers_rollout(
    loaded: LoadedModel, generation: Generation, *, last_layers: int = 8, residual: float = 0.5
) -> Rollout:
    """Rollout through the last `last_layers` layers: what lower layers mixed stays where they put it.

    All layers where the model has no more. Rows sum to 1 minus `lost_mass`. Raises OptionError for fewer than one layer
    or a residual outside [0, 1).
    """
    return roll_out(
        loaded,
        generation,
        name="last_layers_rollout",
        residual=residual,
        last_layers=last_layers,
        settings={"residual": residual, "head_fusion": "mean"},
    )


@method(
    "sink_free_rollout",
    needs={"attentions"},
    source="the first-token sink: Xiao et al. 2023, https://arxiv.org/abs/2309.17453; product: Abnar & Zuidema 2020",
)
def sink_free_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Rollout with attention to the first token removed at every layer and each row scaled to sum 1 again.

    The first token itself, which sees nothing else, keeps its own row. The null is uniform over the keys that are
    left. Rows sum to 1. Raises OptionError for a residual outside [0, 1).
    """
    return roll_out(
        loaded,
        generation,
        name="sink_free_rollout",
        residual=residual,
        sink_removed=True,
        settings={"residual": residual, "head_fusion": "mean"},
    )


@method(
    "value_norm_rollout",
    needs={"attentions"},
    source="Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102, eq. 4; product as in Abnar & Zuidema 2020",
)
def value_norm_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Rollout of ||sum over heads of attention weight x transformed value||, each layer's rows scaled to sum 1.

    A sink with small values weighs little. Rows sum to 1. Raises UnsupportedModelError where attention does not go
    straight into an output projection, OptionError for a residual outside [0, 1).
    """
    with projections_watched() as watch:
        return roll_out(
            loaded,
            generation,
            name="value_norm_rollout",
            residual=residual,
            fuse=value_norms(),
            watch=watch,
            settings={"residual": residual, "head_fusion": "norm of the sum"},
        )


@method(
    "value_norm_attention",
    needs={"attentions"},
    source="Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102, eq. 4, mean over layers",
)
def value_norm_attention(loaded: LoadedModel, generation: Generation) -> Rollout:
    """Mean over layers of ||sum over heads of attention weight x transformed value||, rows scaled to sum 1.

    No product, so nothing is absorbed by the first token through depth; indirect paths are not followed. The null is
    the mean over layers of uniform attention; there is no curve. Raises UnsupportedModelError where attention does not
    go straight into an output projection.
    """
    positions = target_positions(generation)
    start = starts(loaded, generation)
    with projections_watched() as watch:
        layers = capture_attention(loaded, generation.ids[: positions[-1] + 1], fuse=value_norms(), watch=watch)
    rows = torch.stack([carry(layer, start, as_it_is) for layer in layers]).mean(dim=0)
    null = torch.stack([layer.visible.spread(start) for layer in layers]).mean(dim=0)
    return Rollout(
        method="value_norm_attention",
        rows=padded(rows, generation),
        null_rows=padded(null, generation),
        lost_mass=(1 - rows.sum(dim=1)).clamp(min=0),
        curve=None,
        settings={"head_fusion": "norm of the sum", "layers": len(layers)},
    )


@method(
    "measured_residual_rollout",
    needs={"attentions"},
    source="the idea of Kobayashi et al. 2021, https://arxiv.org/abs/2109.07152, without layer norms and value norms",
)
def measured_residual_rollout(loaded: LoadedModel, generation: Generation) -> Rollout:
    """Rollout with r = ||x|| / (||x|| + ||attention||) of each layer and position in place of a fixed share.

    x is the residual stream that goes into the layer, attention what the layer's attention adds to it. The null has
    the same shares. Rows sum to 1 minus `lost_mass`; `settings` gives the mean share of every layer. Raises
    UnsupportedModelError where the layers or their attention cannot be told apart.
    """
    shares = measured_residual(loaded, generation.ids[: target_positions(generation)[-1] + 1])
    return roll_out(
        loaded,
        generation,
        name="measured_residual_rollout",
        residual=shares,
        settings={"residual": [round(float(share.mean()), 4) for share in shares], "head_fusion": "mean"},
    )
