"""Attention rollout, only for the rows that are needed, and its variants as rows of one table.

R = product over layers, last layer first, of (r I + (1 - r) A_l) with A_l the head-mean attention (Abnar & Zuidema
2020, https://arxiv.org/abs/2005.00928). The row of a target is that of its predicting position, so the product is
carried from the top layer down as [target, seq], and no layer's complete map is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError, UnsupportedModelError
from llmxai.methods.attention.capture import (
    AttentionCall,
    Fuse,
    LayerAttention,
    Visible,
    capture_attention,
    mean_of_heads,
    widest,
)
from llmxai.methods.attention.dilution import CurveRecorder
from llmxai.methods.attention.encoder_decoder import rollout_steps
from llmxai.methods.attention.weighting import measured_residual, projections_watched, value_norms
from llmxai.methods.registry import METHODS, Method, at_least, method
from llmxai.methods.targets import Target, seen_by, targets_of
from llmxai.models import LoadedModel, ModelKind, adapter_of
from llmxai.models.embedding import on_device
from llmxai.settings import AttentionRollout
from llmxai.types import Generation, Scores

TINY = 1e-30
Steps = Iterator[tuple[Tensor, Tensor]]
"""The rows of the targets and of the null after every layer, top layer first: [target, seen], float64 on the CPU."""


@dataclass(frozen=True)
class Variant:
    """One way to combine the attention of all layers into a row. The defaults are plain rollout."""

    name: str
    source: str
    summary: str
    fusion: str = "mean"
    """How heads become one map (`FUSIONS`), or `value_norms`."""
    options: tuple[str, ...] = ("residual",)
    """The fields that a caller may set."""
    residual: float | None = AttentionRollout.residual
    """Share of each layer that stays in the residual stream; None: measured per layer and token."""
    last_layers: int | None = None
    """How many layers, counted from the top; None: all."""
    sink_removed: bool = False
    """Hide the first token from every layer and rescale each row to sum 1."""
    product: bool = True
    """Whether layers are multiplied; else they are averaged."""
    curve: bool = True
    """Whether the partial products are meaningful."""


ABNAR = "Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928"
KOBAYASHI = "Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102, eq. 4"
VARIANTS = (
    Variant(
        "max_head_rollout",
        f"{ABNAR}, heads fused by their maximum",
        "Rollout of the maximum over heads of each attention weight, rows rescaled to the sums of the mean.",
        fusion="max",
    ),
    Variant(
        "min_head_rollout",
        f"{ABNAR}, heads fused by their minimum",
        "Rollout of the minimum over heads of each attention weight, rows rescaled to the sums of the mean.",
        fusion="min",
    ),
    Variant(
        "last_layer_attention",
        f"raw attention, the baseline of {ABNAR}",
        "The last layer's attention from each target's predicting position, mean over heads.",
        options=(),
        residual=0.0,
        last_layers=1,
        curve=False,
    ),
    Variant(
        "last_layers_rollout",
        f"{ABNAR}, the product over the last layers only",
        "Rollout through the last layers only; the mixing of the lower layers is ignored.",
        options=("last_layers", "residual"),
        last_layers=8,
    ),
    Variant(
        "sink_free_rollout",
        f"the first-token sink: Xiao et al. 2023, https://arxiv.org/abs/2309.17453; product: {ABNAR}",
        "Rollout with attention to the first token removed at every layer and each row rescaled to sum 1.",
        sink_removed=True,
    ),
    Variant(
        "value_norm_rollout",
        f"{KOBAYASHI}; product as in {ABNAR}",
        "Rollout of ||sum over heads of attention weight x transformed value||, each layer's rows scaled to sum 1.",
        fusion="value_norms",
    ),
    Variant(
        "value_norm_attention",
        f"{KOBAYASHI}, mean over layers",
        "Mean over layers of ||sum over heads of attention weight x transformed value||, rows scaled to sum 1.",
        fusion="value_norms",
        options=(),
        product=False,
        curve=False,
    ),
    Variant(
        "measured_residual_rollout",
        "the idea of Kobayashi et al. 2021, https://arxiv.org/abs/2109.07152, without layer norms and value norms",
        "Rollout with r = ||x|| / (||x|| + ||attention||) per layer and position instead of a fixed share.",
        options=(),
        residual=None,
    ),
)

LIMITS = {"last_layers": at_least(1)}


def max_of_heads(weights: Tensor, _call: AttentionCall | None, _keys: slice) -> Tensor:
    return _with_sums_of_the_mean(weights.amax(dim=0), weights)


def min_of_heads(weights: Tensor, _call: AttentionCall | None, _keys: slice) -> Tensor:
    return _with_sums_of_the_mean(weights.amin(dim=0), weights)


def _with_sums_of_the_mean(fused: Tensor, weights: Tensor) -> Tensor:
    """Rows rescaled to their sum in the mean over heads: 1, or less if a learned sink takes a share."""
    wanted = weights.sum(dim=(0, 2))[:, None] / len(weights)
    return fused * (wanted / fused.sum(dim=1, keepdim=True).clamp(min=TINY))


FUSIONS: Mapping[str, Fuse] = {"mean": mean_of_heads, "max": max_of_heads, "min": min_of_heads}


@method("attention_rollout", needs={"attentions"}, source=ABNAR)
def attention_rollout(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    residual: float = AttentionRollout.residual,
    head_fusion: str = AttentionRollout.head_fusion,
) -> Scores:
    """Share of attention that reaches every token from each target's predicting position, through all layers.

    `residual` is the share of each layer that stays in the residual stream; `head_fusion` is how heads become one map:
    mean, or max or min rescaled to the sums of the mean. The null is the same product with every attention row uniform
    over the keys that its mask allows. Rows sum to 1 minus `lost_mass`. For an encoder-decoder, the product continues
    from the decoder's self- and cross-attention, each with its own residual share, through the encoder.

    >>> attention_rollout(loaded, generation).values  # [target, seq], shares of 1

    Raises OptionError for a residual outside [0, 1) or an unknown fusion, and UnsupportedModelError for layers without
    softmax attention.
    """
    AttentionRollout(residual=residual, head_fusion=head_fusion)  # raises OptionError
    settings = {"residual": residual, "head_fusion": head_fusion}
    if loaded.kind is ModelKind.ENCODER_DECODER:
        targets = targets_of(generation, targets)
        start = initial_rows(loaded, generation, targets)
        steps = rollout_steps(loaded, generation, targets, start, residual=residual, fuse=FUSIONS[head_fusion])
        return attention_scores("attention_rollout", generation, targets, steps, settings)
    plain = Variant("attention_rollout", ABNAR, "", fusion=head_fusion, residual=residual)
    return roll_out(loaded, generation, plain, targets=targets, settings=settings)


def roll_out(
    loaded: LoadedModel,
    generation: Generation,
    variant: Variant,
    *,
    targets: Sequence[Target] | None = None,
    settings: Mapping[str, object],
) -> Scores:
    """The targets' rows by one variant. Rows sum to 1 minus `lost_mass`; with value norms or without a sink, to 1.

    Raises OptionError for a residual outside [0, 1) or less than one layer, and UnsupportedModelError if a layer has no
    softmax attention, or if value norms are needed and attention does not feed the output projection directly.
    """
    if variant.last_layers is not None:
        LIMITS["last_layers"]("last_layers", variant.last_layers)
    if variant.residual is not None:
        AttentionRollout(residual=variant.residual)  # raises OptionError
    targets = targets_of(generation, targets)
    start = initial_rows(loaded, generation, targets)
    ids = generation.ids[: start.shape[1]]
    shares = measured_residual(loaded, ids) if variant.residual is None else None
    weighed = variant.fusion == "value_norms"
    with projections_watched() if weighed else nullcontext() as watch:
        fuse = value_norms() if weighed else FUSIONS[variant.fusion]
        layers = capture_attention(loaded, ids, fuse=fuse, watch=watch)
        if not layers:
            raise UnsupportedModelError(
                f"{loaded.name}: {type(loaded.model).__name__} computes no attention, so there is none to roll out; "
                f"integrated gradients work."
            )
        residuals: Sequence[float | Tensor] = shares or [variant.residual or 0.0] * len(layers)
        chosen = list(zip(layers, residuals, strict=True))[-(variant.last_layers or len(layers)) :]
        steps = _product(chosen, start, variant) if variant.product else iter([_mean(chosen, start)])
        if shares is not None:
            settings = {**settings, "residual": [round(float(share.mean()), 4) for share in shares]}
        settings = {**settings, "layers": len(chosen)}
        return attention_scores(variant.name, generation, targets, steps, settings, curve=variant.curve)


def initial_rows(
    loaded: LoadedModel, generation: Generation, targets: Sequence[Target]
) -> Float[Tensor, "target seen"]:
    """The start of a rollout: 1 at the predicting position, or at the positions that a classifier's head reads."""
    return adapter_of(loaded.model).initial_rows(
        loaded.model, name=loaded.name, generation=generation, positions=[target.positions for target in targets]
    )


def attention_scores(
    name: str,
    generation: Generation,
    targets: Sequence[Target],
    steps: Steps,
    settings: Mapping[str, object],
    *,
    curve: bool = True,
) -> Scores:
    """The rows after the last of `steps`, with the curve of all of them."""
    recorder = CurveRecorder.of(targets)
    for rows, null in steps:
        recorder.add(rows, null)
    n = len(generation.ids)

    def padded(part: Tensor) -> Tensor:
        return torch.nn.functional.pad(part, (0, n - part.shape[1]))

    return Scores(
        method=name,
        values=padded(rows),
        features=seen_by(targets, n),
        signed=False,
        settings={**settings, "layers": settings.get("layers", len(recorder.steps))},
        null=padded(null),
        lost_mass=(1 - rows.sum(dim=1)).clamp(min=0),
        curve=recorder.curve() if curve else None,
    )


def _product(layers: Sequence[tuple[LayerAttention, float | Tensor]], rows: Tensor, variant: Variant) -> Steps:
    null = rows.clone()
    for layer, r in reversed(layers):
        visible = layer.visible.without_sink() if variant.sink_removed else layer.visible
        change = partial(without_sink, visible=layer.visible) if variant.sink_removed else unchanged
        rows = r * rows + carry(layer, (1 - r) * rows, change)
        null = r * null + visible.spread((1 - r) * null)
        yield rows, null


def _mean(layers: Sequence[tuple[LayerAttention, float | Tensor]], start: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.stack([carry(layer, start, unchanged) for layer, _ in layers]).mean(dim=0)
    return rows, torch.stack([layer.visible.spread(start) for layer, _ in layers]).mean(dim=0)


def carry(
    layer: LayerAttention,
    mass: Float[Tensor, "target seq"],
    change: Callable[[Tensor, slice, slice], Tensor],
) -> Float[Tensor, "target seq"]:
    """`mass` times the layer's attention matrix, block by block on its device; blocks without mass are skipped."""
    busy = mass.any(dim=0)
    here = moved = None
    for queries, keys in layer.blocks():
        if not busy[queries].any():
            continue
        rows = change(layer.rows(queries, keys), queries, keys)
        if here is None or moved is None:
            here = mass.to(rows.device, widest(rows.device))
            moved = torch.zeros_like(here)
        moved[:, keys] += here[:, queries] @ rows.to(here.dtype)
    return torch.zeros_like(mass) if moved is None else moved.to(mass)


def unchanged(rows: Tensor, _queries: slice, _keys: slice) -> Tensor:
    return rows


def without_sink(
    rows: Float[Tensor, "query key"], queries: slice, keys: slice, *, visible: Visible
) -> Float[Tensor, "query key"]:
    """Without key 0, each row rescaled to sum 1; a query that sees only key 0 keeps it (`Visible.without_sink`)."""
    if keys.start > 0:
        return rows / rows.sum(dim=1, keepdim=True).clamp(min=TINY)
    rest = rows.clone()
    rest[:, 0] *= on_device(visible.end[queries] <= 1, rest.device)
    return rest / rest.sum(dim=1, keepdim=True).clamp(min=TINY)


def _entered(variant: Variant) -> Method:
    """The table entry of a variant: its options are the fields that a caller may set."""

    def function(
        loaded: LoadedModel, generation: Generation, *, targets: Sequence[Target] | None = None, **options: object
    ) -> Scores:
        if unknown := sorted(options.keys() - set(variant.options)):
            raise OptionError(f"{variant.name} has no option {unknown[0]!r}. It has: {', '.join(variant.options)}.")
        chosen = replace(variant, **options)  # type: ignore[arg-type]
        fusion = "norm of the sum" if variant.fusion == "value_norms" else variant.fusion
        settings = {"residual": chosen.residual} if "residual" in variant.options else {}
        return roll_out(loaded, generation, chosen, targets=targets, settings={**settings, "head_fusion": fusion})

    function.__name__, function.__doc__ = variant.name, variant.summary
    options = {name: getattr(variant, name) for name in variant.options}
    limits = {name: limit for name, limit in LIMITS.items() if name in options}
    return Method(variant.name, frozenset({"attentions"}), variant.source, variant.summary, function, options, limits)


METHODS.update({variant.name: _entered(variant) for variant in VARIANTS})
