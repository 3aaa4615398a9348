"""Measured effects: F of every target with units of the prompt removed, one by one and in random subsets.

The units of a long prompt are found from coarse to fine (`coarse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from llmxai.errors import UnsupportedModelError
from llmxai.methods.gradients.deletion_path import presence_path
from llmxai.methods.perturbation.coarse import (
    CONFIDENCE,
    context_effects,
    measured_context,
    meter_of,
    root_subsets,
    take_apart,
    tree_of,
)
from llmxai.methods.perturbation.removal import (
    MOST_UNITS,
    content_words,
    f_of_masks,
    half_subsets,
    hidden_sets,
    over_tokens,
    planned_size,
    prompt_units,
    unit_sums,
)
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, TargetRows, kinds, seen_by, span_target, targets_of
from llmxai.models import LoadedModel, frozen_eval
from llmxai.models.memory import ChunkSize, in_chunks
from llmxai.names import Progress, Unit, quiet
from llmxai.settings import Removal
from llmxai.stats import LinearFit, acting_together, ridge_with_prior
from llmxai.types import Effects, Generation, Piece, Scores, predicted_token

CONSTANT = 1e-12
"""Variance (nats squared) of F under which it does not depend on what is removed."""

ADDITIVE = 0.8
"""Share of the variance of F that single effects explain, under which a pair of units that act together is sought."""


def measure_effects(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    removal: Removal = Removal(),
    f_input: Float[Tensor, " target"] | None = None,
    progress: Progress = quiet,
) -> Effects:
    """F (nats) of all targets with units of the prompt removed, one by one and in random subsets.

    Template tokens, BOS and the answer are never removed. A prompt of more than `MOST_UNITS` words is split from
    coarse to fine, unless `removal.units` says otherwise. `f_input`: F with nothing removed, if already known. One
    forward pass per mask serves all targets.

    >>> measure_effects(loaded, generation, removal=Removal(units="sentence")).drop  # [target, unit], nats

    Raises NonFiniteError if the model gives NaN.
    """
    targets = targets_of(generation, targets)
    words = [word for word in content_words(generation) if word[1] <= generation.prompt_len]
    if removal.units == "auto" and len(words) > MOST_UNITS and (roots := tree_of(generation)):
        return from_coarse_to_fine(loaded, generation, targets, removal, roots, f_input=f_input, progress=progress)
    units, kind = prompt_units(generation, units=removal.units)
    kept = half_subsets(len(units), removal.subsets, seed=removal.seed)
    alone = ~torch.eye(len(units), dtype=torch.bool)
    whole = torch.ones(int(f_input is None or removal.answer), len(units), dtype=torch.bool)
    size = _size(loaded, generation, targets, removal)
    f = f_of_masks(
        loaded,
        generation,
        (*targets, span_target(generation)),
        units,
        torch.cat([whole, alone, kept]),
        operator=removal.operator,
        baseline=removal.baseline,
        size=size,
        progress=progress,
    )
    f, answer = f[:-1], f[-1]
    first, known = len(whole), len(whole) + len(units)
    return Effects(
        operator=removal.operator,
        units=units,
        kept=kept,
        f_full=f[:, 0] if f_input is None else f_input.double(),
        f_without=f[:, first:known],
        f_masked=f[:, known:],
        settings=_settings(removal, size, kind),
        answer_drop=answer[0] - answer[first:known] if removal.answer else None,
        context=measured_context(loaded, generation, targets, removal, size=size, units=units, masked=answer[known:])
        if removal.answer
        else None,
        **_hidden(loaded, generation, targets, removal, size=size),
    )


def _size(loaded: LoadedModel, generation: Generation, targets: Sequence[Target], removal: Removal) -> ChunkSize:
    given = removal.chunk_tokens
    return planned_size(loaded, generation, targets) if given is None else ChunkSize(given)


def from_coarse_to_fine(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    removal: Removal,
    roots: Sequence[Piece],
    *,
    f_input: Float[Tensor, " target"] | None,
    progress: Progress = quiet,
) -> Effects:
    """The same for documents, turns and what they consist of, within `removal.budget` forward passes."""
    size = _size(loaded, generation, targets, removal)
    subsets = min(removal.subsets, removal.budget // 3)
    left = removal.budget - subsets - root_subsets(removal) - 3  # with everything, without the context, and the rest
    with frozen_eval(loaded.model):
        meter = meter_of(
            loaded, generation, targets, removal, roots, size=size, passes=removal.budget, progress=progress
        )
        full = meter.full()
        found = take_apart(generation, roots, meter, full, left=left)
        units = tuple(piece.tokens for piece in found.units)
        kept = half_subsets(len(units), subsets, seed=removal.seed)
        sets = [[unit for unit, stays in zip(units, row, strict=True) if not stays] for row in kept.tolist()]
        f = torch.stack([found.figures[piece] for piece in found.units])
        masked = meter.without(sets) if sets else f[:0]
        context = context_effects(generation, meter, found, full, masked[:, len(targets)])
        prefix = meter.prefix
    return Effects(
        operator=meter.how,
        units=units,
        kept=kept,
        f_full=full[: len(targets)] if f_input is None else f_input.double(),
        f_without=f[:, : len(targets)].T.contiguous(),
        f_masked=masked[:, : len(targets)].T.contiguous(),
        settings=_settings(removal, size, "piece"),
        answer_drop=full[len(targets)] - f[:, len(targets)],
        context=context,
        **_hidden(loaded, generation, targets, removal, size=size, units=units, reader=meter.hides_from, prefix=prefix),
    )


def _settings(removal: Removal, size: ChunkSize, kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "kept_share": 0.5,
        "seed": removal.seed,
        "baseline": removal.baseline if removal.operator == "baseline" else None,
        "chunk_tokens": size.tokens,
        "chunk_halvings": size.halvings,
    }


def _hidden(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    removal: Removal,
    *,
    size: ChunkSize,
    units: Sequence[Unit] | None = None,
    reader: int | None = None,
    prefix: DynamicCache | None = None,
) -> dict[str, Any]:
    """The fields of `Effects` about what is hidden; with `units`, of the mentions only those of a unit."""
    sets = hidden_sets(generation) if removal.answer else ()
    if units is not None:
        sets = tuple(one for one in sets if len(one) == 1 or not set(units).isdisjoint(one))
    if not sets:
        return {}
    found = f_of_hidden(loaded, generation, targets, sets, size=size, reader=reader or 0, prefix=prefix)
    return {} if found is None else {"hidden": sets, "f_hidden": found}


def f_of_hidden(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    sets: Sequence[Sequence[Unit]],
    *,
    size: ChunkSize,
    reader: int = 0,
    prefix: DynamicCache | None = None,
) -> Float[Tensor, "target hidden"] | None:
    """F of every target with each set of ranges hidden from the tokens behind it; None where a model allows no mask.

    With `prefix`, the keys and values of the tokens before `reader`, only from the tokens from `reader` on.

    A token in front of a set, and one inside a word of it, counts as unchanged: its own word always stays. NaN for a
    target of such tokens only. One forward pass per set serves all targets.
    """
    try:
        path = presence_path(loaded, generation, features="all")
    except UnsupportedModelError:
        return None
    rows = TargetRows.of(_single(targets))
    seen = max(rows.positions) + 1
    presence = torch.zeros(len(sets) + 1, seen, dtype=path.input.dtype, device=path.input.device)  # the last hides none
    for number, ranges in enumerate(sets):
        for start, end in ranges:
            presence[number, start:end] = -torch.inf

    def values(chosen: slice) -> Tensor:
        logits = path.logits(
            loaded, presence[chosen], positions=rows.positions, live=slice(reader, seen), prefix=prefix
        )
        return rows.values(logits).double().cpu()

    try:
        with frozen_eval(loaded.model), torch.no_grad(), path.attached(loaded.model):
            f = in_chunks(values, size=size, each=seen, items=len(sets) + 1)  # [set + 1, row]
    except UnsupportedModelError:
        return None
    outside = torch.tensor([[_is_behind(position, ranges) for position in rows.positions] for ranges in sets])
    drop = torch.where(outside, f[-1] - f[:-1], 0.0)
    owner = torch.tensor([number for number, target in enumerate(targets) for _ in target.positions])
    sums = torch.zeros(len(targets), len(sets), dtype=torch.float64).index_add_(0, owner, drop.T)
    seen_by_any = torch.zeros(sums.shape).index_add_(0, owner, outside.T.float()) > 0
    f_full = torch.zeros(len(targets), dtype=torch.float64).index_add_(0, owner, f[-1])
    return (f_full[:, None] - sums).masked_fill(~seen_by_any, torch.nan)


def _single(targets: Sequence[Target]) -> list[Target]:
    """Every token of every target as a target of its own."""
    found = []
    for target in targets:
        if len(target.ids) == 1:
            found.append(target)
            continue
        for number, (position, token) in enumerate(zip(target.positions, target.ids, strict=True)):
            foils = target.foils[number : number + 1]
            found.append(Target(kind=target.kind, positions=(position,), ids=(token,), foils=foils))
    return found


def _is_behind(position: int, ranges: Sequence[Unit]) -> bool:
    """Whether the token that a position predicts comes after the first of the ranges and is inside none of them."""
    token = predicted_token(position)
    inside = any(start < token < end for start, end in ranges)
    return not inside and min(start for start, _ in ranges) <= position


def estimated(effects: Effects, prior: Scores | None) -> Effects:
    """The effects with the Banzhaf value of every unit of the prompt and its 90 % interval.

    From a ridge regression (`ridge_with_prior`) of F on `Effects.subsets`, around the unit sums of `prior`'s scores.
    """
    if not len(effects.kept):
        return effects
    x, f = (side.double().numpy() for side in effects.subsets)
    halves = x[:-1]
    means = np.zeros((len(effects.f_full), len(effects.units)))
    if prior is not None and prior.refused is None:
        means = unit_sums(prior.values, effects.units)
    fits = [ridge_with_prior(x, y, mean) for y, mean in zip(f, means, strict=True)]
    ends = [fit.interval(CONFIDENCE) for fit in fits]
    ceiling = tuple(_explained(fit, y[:-1]) for fit, y in zip(fits, f, strict=True))
    left = [y[:-1] - halves @ fit.mean for fit, y in zip(fits, f, strict=True)]
    return replace(
        effects,
        effect=torch.from_numpy(np.stack([fit.mean for fit in fits])),
        low=torch.from_numpy(np.stack([low for low, _ in ends])),
        high=torch.from_numpy(np.stack([high for _, high in ends])),
        ceiling=ceiling,
        pair=tuple(
            acting_together(halves, rest) if share is not None and share < ADDITIVE else None
            for rest, share in zip(left, ceiling, strict=True)
        ),
    )


def _explained(fit: LinearFit, f: Float[np.ndarray, " mask"]) -> float | None:
    variance = float(np.var(f))
    return max(0.0, 1 - fit.noise**2 / variance) if variance > CONSTANT else None


@method("leave_one_out", needs={"forward"}, source="Li, Monroe & Jurafsky 2016, https://arxiv.org/abs/1612.08220")
def leave_one_out(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    units: str = Removal.units,
    operator: str = Removal.operator,
    baseline: str = Removal.baseline,
    f_input: Float[Tensor, " target"] | None = None,
    progress: Progress = quiet,
) -> Scores:
    """Drop of every target's log-prob (nats) when a unit of the prompt is removed, split equally over its tokens.

    F(prompt) - F(prompt without the unit): erasure of Li, Monroe & Jurafsky 2016, eq. 1, in nats and not divided by F.
    It is a measurement, not an estimate, but on a prompt that was never given. The values of a unit's tokens sum to
    its effect. `f_input`: F with nothing removed, if already known. One forward pass per unit serves all targets.

    Raises OptionError for an unknown option and NonFiniteError if the model gives NaN.
    """
    targets = targets_of(generation, targets)
    removal = Removal(units=units, operator=operator, baseline=baseline, subsets=0, answer=False)
    effects = measure_effects(loaded, generation, targets=targets, removal=removal, f_input=f_input, progress=progress)
    values, features = over_tokens(effects.drop, effects.units, len(generation.ids))
    return Scores(
        method="leave_one_out",
        values=values,
        features=features & seen_by(targets, len(generation.ids)),
        signed=True,
        settings={"target": kinds(targets), "operator": operator, "units": effects.settings["kind"]},
    )
