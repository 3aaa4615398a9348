"""The rows that tracing follows, and tracing as a method of the table (the algebra: llmxai/trace.py).

Every unit of the answer needs a row of contributions. Where every token is a target, its row is the sum of theirs and
costs nothing. Where the targets are larger, the missing rows are computed in one pass along the path of the method that
is followed, to `FOLLOWED` of F's change: one forward pass a node, and one vector-Jacobian product a node and unit.
There are at most 64 units (words, then sentences, then runs of them), however long the answer. A few nodes for every
row would not do: where they miss the part of the path on which a word is decided, its row is noise, and so is all that
is handed on through it (docs/defaults.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from llmxai.methods.gradients.deletion_path import deletion_path
from llmxai.methods.perturbation.removal import answer_units, over_tokens, prompt_units
from llmxai.methods.registry import METHODS, method
from llmxai.methods.targets import Target, kinds, seen_by, span_target, targets_of
from llmxai.models import LoadedModel
from llmxai.names import Progress, Unit, quiet
from llmxai.settings import Compute, DeletionPath, Tolerance
from llmxai.trace import Trace, falls, unit_shares
from llmxai.types import Effects, Generation, Scores

FOLLOWED = 0.3
"""Relative tolerance of rows that are only followed, at least: half the nodes of 0.02, and the sources of the suite
`trace` come first as often (docs/defaults.md)."""
PATH_OPTIONS = ("features", "baseline", "n_steps", "max_nodes")
"""What the rows that are computed only to be followed take from the settings of the others, besides the tolerance."""


def followed_units(generation: Generation) -> tuple[Unit, ...]:
    """The units of the answer whose shares are handed on: those that can be hidden, and its last word."""
    last = generation.words[-1]
    ends = generation.stop == "eos" or last[0] < generation.prompt_len
    return (*answer_units(generation), *(() if ends else (last,)))


def missing_rows(generation: Generation, targets: Sequence[Target]) -> tuple[Target, ...]:
    """A target for every unit of the answer that some target sees and that no targets make up."""
    last = max(target.last for target in targets)
    return tuple(
        _target_of(generation, unit)
        for unit in followed_units(generation)
        if unit[0] <= last and rows_of(targets, unit) is None
    )


def _target_of(generation: Generation, unit: Unit) -> Target:
    first = generation.prompt_len
    return span_target(generation, first=unit[0] - first, end=unit[1] - first)


def rows_of(targets: Sequence[Target], unit: Unit) -> list[int] | None:
    """The targets whose log-probs sum to that of a unit: the unit itself, or its tokens; None if there are none."""
    alike = {target.tokens: number for number, target in enumerate(targets) if target.kind == "logprob"}
    if unit in alike:
        return [alike[unit]]
    single = [alike.get((token, token + 1)) for token in range(*unit)]
    found = [number for number in single if number is not None]
    return found if len(found) == len(single) else None


def with_missing_rows(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    scores: Scores,
    *,
    compute: Compute = Compute(),
    progress: Progress = quiet,
) -> Scores:
    """`scores` (of `targets`) without their certificate, and after them those of the `missing_rows`.

    The latter on the same path, to the same tolerance or `FOLLOWED`, whichever is larger.
    """
    more = missing_rows(generation, targets)
    if not more:
        return scores
    entry, said = METHODS[scores.method], scores.settings
    options = {name: said[name] for name in PATH_OPTIONS if name in entry.options and name in said}
    allowed = Tolerance(**said["tolerance"])
    options["tolerance"] = replace(allowed, relative=max(allowed.relative, FOLLOWED))
    found = entry.function(loaded, generation, targets=more, compute=compute, progress=progress, **options)
    return Scores(
        method=scores.method,
        values=torch.cat([scores.values, found.values]),
        features=torch.cat([scores.features, found.features]),
        signed=scores.signed,
        settings=scores.settings,
    )


def traced(
    generation: Generation,
    targets: Sequence[Target],
    rows: Scores,
    *,
    units: Sequence[Unit],
    effects: Effects | None = None,
) -> Trace:
    """The shares of every target, followed through the answer to the `units` of the prompt.

    `rows`: of `with_missing_rows`. `effects`: those on the same rows; None if nothing was measured.
    """
    everything = (*targets, *missing_rows(generation, targets))
    own = followed_units(generation)
    steps = torch.zeros(len(own), len(units) + len(own), dtype=torch.float64)
    measured = torch.full_like(steps, torch.nan)
    fallen = None if effects is None else falls(effects, (*units, *own))
    for number, unit in enumerate(own):
        made = rows_of(everything, unit)
        if made is not None:
            before = len(units) + number
            sums = rows.values[made].double().sum(dim=0)
            sums[unit[0] : unit[1]] = 0.0  # how a word is spelt out is no source of it
            steps[number, :before] = unit_shares(sums[None], [*units, *own])[0, :before]
            if fallen is not None:
                measured[number, :before] = fallen[made, :before].sum(dim=0)
    return Trace(
        method=rows.method,
        units=(*units, *own),
        n_sources=len(units),
        direct=unit_shares(rows.values[: len(targets)], [*units, *own]),
        steps=steps,
        effects=measured,
    )


@method(
    "traced_deletion_path",
    needs={"gradients", "attentions"},
    source="Walker & Ewetz 2025, https://arxiv.org/abs/2512.15663, on deletion-path contributions",
)
def traced_deletion_path(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    units: str = "word",
    tolerance: Tolerance = DeletionPath.tolerance,
    n_steps: int | None = DeletionPath.n_steps,
    compute: Compute = Compute(),
) -> Scores:
    """Share of every unit of the prompt after the shares of the answer's own words are followed back to the prompt.

    Deletion-path contributions, followed through the answer (llmxai/trace.py). A unit's share is split equally over its
    tokens; all are at least 0, and a row sums to 1 minus what reaches no unit. `tolerance`, `n_steps`: as in
    `deletion_path`; rows of the answer's units may be as coarse as `FOLLOWED`.

    Raises what `deletion_path` raises.
    """
    targets = targets_of(generation, targets)
    scores = deletion_path(
        loaded, generation, targets=targets, features=features, tolerance=tolerance, n_steps=n_steps, compute=compute
    )
    chosen, kind = prompt_units(generation, units=units)
    rows = with_missing_rows(loaded, generation, targets, scores, compute=compute)
    trace = traced(generation, targets, rows, units=chosen)
    values, allowed = over_tokens(trace.total, chosen, len(generation.ids))
    return Scores(
        method="traced_deletion_path",
        values=values,
        features=allowed & seen_by(targets, len(generation.ids)),
        signed=False,
        settings={"target": kinds(targets), "features": features, "units": kind, "n_steps": n_steps},
    )
