"""The rows that tracing follows, and tracing as a method of the table (the algebra: llmxai/trace.py).

Every unit of the answer (a word; in a long answer a sentence or a run of them) needs a row of contributions. Where
every token is a target, its row is the sum of theirs and costs nothing. Otherwise few rows are computed, however long
the answer:

1. Up to `MOST_ROWS` missing rows are all computed.
2. Of more, first each unit hands on the contributions of the shortest target that holds it, as far as they come before
   the unit; for units that no target holds, one row of all of them together is computed. Then those of the units
   through which the largest shares pass, at least `LEAST_CARRIED` of a target, get rows of their own, `MOST_ROWS` at
   most, and all is followed again.

Rows are computed along the path of the method that is followed, to `FOLLOWED` of F's change: one forward pass a node,
and one vector-Jacobian product a node and row. A few nodes for every row would not do: where they miss the part of the
path on which a word is decided, its row is noise, and so is all that is handed on through it (docs/defaults.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
ROUGH = Tolerance(relative=FOLLOWED)
MOST_ROWS = 8
"""Rows of single units that are computed for one answer, at most: with more, the sources of a long answer hardly change
(docs/defaults.md)."""
LEAST_CARRIED = 0.02
"""Of a target, the share that must pass through a unit for a row of its own, where not every unit gets one."""
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


def row_of(targets: Sequence[Target], unit: Unit) -> tuple[list[int], Unit] | None:
    """The targets whose contributions a unit of the answer hands on, and the range that they make up.

    Its own (`rows_of`), else those of the shortest target that holds it; None if there is none.
    """
    if (own := rows_of(targets, unit)) is not None:
        return own, unit
    holding = [
        (end - start, number)
        for number, target in enumerate(targets)
        for start, end in [target.tokens]
        if target.kind == "logprob" and start <= unit[0] and unit[1] <= end
    ]
    return ([min(holding)[1]], targets[min(holding)[1]].tokens) if holding else None


@dataclass(frozen=True)
class Followed:
    """The contributions that are followed: those of the targets, and after them what was computed for that alone."""

    targets: tuple[Target, ...]
    scores: Scores
    """One row each; no certificate."""

    def rows_for(self, targets: Sequence[Target]) -> Scores:
        """A row for each of `targets`; 0 where none was computed."""
        places = {target: number for number, target in enumerate(self.targets)}
        known = [places.get(target) for target in targets]
        values, features = self.scores.values, self.scores.features
        nothing, none = torch.zeros_like(values[0]), torch.zeros_like(features[0])
        return replace(
            self.scores,
            values=torch.stack([nothing if row is None else values[row] for row in known]),
            features=torch.stack([none if row is None else features[row] for row in known]),
        )


def with_missing_rows(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    scores: Scores,
    *,
    compute: Compute = Compute(),
    progress: Progress = quiet,
) -> Followed:
    """`scores` (of `targets`), and after them the rows that are computed to be followed: see above.

    The latter on the same path, to the same tolerance or `FOLLOWED`, whichever is larger.
    """
    followed = Followed(
        targets=tuple(targets),
        scores=Scores(
            method=scores.method,
            values=scores.values,
            features=scores.features,
            signed=scores.signed,
            settings=scores.settings,
        ),
    )
    more = missing_rows(generation, targets)

    def joined(followed: Followed, more: Sequence[Target]) -> Followed:
        return _extended(loaded, generation, followed, more, compute, progress) if more else followed

    if len(more) > MOST_ROWS:
        followed = joined(followed, _holder(generation, targets, more))
        more = most_carried(generation, followed, len(targets), more)
    return joined(followed, more)


def _extended(
    loaded: LoadedModel,
    generation: Generation,
    followed: Followed,
    more: Sequence[Target],
    compute: Compute,
    progress: Progress,
) -> Followed:
    """The same, and the rows of `more`."""
    scores = followed.scores
    entry, said = METHODS[scores.method], scores.settings
    options = {name: said[name] for name in PATH_OPTIONS if name in entry.options and name in said}
    allowed = Tolerance(**said["tolerance"])
    options["tolerance"] = replace(allowed, relative=max(allowed.relative, FOLLOWED))
    found = entry.function(loaded, generation, targets=more, compute=compute, progress=progress, **options)
    values, features = torch.cat([scores.values, found.values]), torch.cat([scores.features, found.features])
    return Followed((*followed.targets, *more), replace(scores, values=values, features=features))


def _holder(generation: Generation, targets: Sequence[Target], more: Sequence[Target]) -> tuple[Target, ...]:
    """One target over all units that no target holds."""
    alone = [one.tokens for one in more if row_of(targets, one.tokens) is None]
    return (_target_of(generation, (alone[0][0], alone[-1][1])),) if alone else ()


def most_carried(
    generation: Generation, followed: Followed, n_targets: int, more: Sequence[Target]
) -> tuple[Target, ...]:
    """Those of `more` through which the largest shares of the first `n_targets` pass, largest first."""
    trace = traced(generation, followed.targets[:n_targets], followed, units=prompt_units(generation)[0])
    carried = trace.carried.amax(dim=0).tolist()
    shares = dict(zip(trace.units[trace.n_sources :], carried, strict=True))
    left = [one for one in more if rows_of(followed.targets, one.tokens) is None]
    order = sorted(left, key=lambda one: -shares[one.tokens])
    return tuple(one for one in order[:MOST_ROWS] if shares[one.tokens] >= LEAST_CARRIED)


def traced(
    generation: Generation,
    targets: Sequence[Target],
    followed: Followed,
    *,
    units: Sequence[Unit],
    effects: Effects | None = None,
) -> Trace:
    """The shares of every target, followed through the answer to the `units` of the prompt.

    `followed`: of `with_missing_rows`. `effects`: those on the targets and then their `missing_rows`; None if nothing
    was measured.
    """
    checked = (*targets, *missing_rows(generation, targets))
    own = followed_units(generation)
    steps = torch.zeros(len(own), len(units) + len(own), dtype=torch.float64)
    measured = torch.full_like(steps, torch.nan)
    fallen = None if effects is None else falls(effects, (*units, *own))
    handed: list[Unit | None] = []
    for number, unit in enumerate(own):
        before = len(units) + number
        found = None if rows_of(checked, unit) is None else row_of(followed.targets, unit)
        handed.append(None if found is None else found[1])
        if found is not None:
            sums = followed.scores.values[found[0]].double().sum(dim=0)
            sums[unit[0] :] = 0.0  # how a word is spelt out is no source of it, and of a passage only what is before
            steps[number, :before] = unit_shares(sums[None], [*units, *own])[0, :before]
        if fallen is not None and (made := rows_of(checked, unit)) is not None:
            measured[number, :before] = fallen[made, :before].sum(dim=0)
    return Trace(
        method=followed.scores.method,
        units=(*units, *own),
        n_sources=len(units),
        direct=unit_shares(followed.scores.values[: len(targets)], [*units, *own]),
        steps=steps,
        effects=measured,
        rows=tuple(handed),
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
    tolerance: Tolerance = ROUGH,
    n_steps: int | None = DeletionPath.n_steps,
    compute: Compute = Compute(),
) -> Scores:
    """Share of every unit of the prompt after the shares of the answer's own words are followed back to the prompt.

    Deletion-path contributions, followed through the answer (llmxai/trace.py). A unit's share is split equally over its
    tokens; all are at least 0, and a row sums to 1 minus what reaches no unit. `tolerance`, `n_steps`: as in
    `deletion_path`, but `FOLLOWED`, which ranks the sources as well. In a long answer only the units that carry most
    have a row of their own (`with_missing_rows`).

    Raises what `deletion_path` raises.
    """
    targets = targets_of(generation, targets)
    scores = deletion_path(
        loaded, generation, targets=targets, features=features, tolerance=tolerance, n_steps=n_steps, compute=compute
    )
    chosen, kind = prompt_units(generation, units=units)
    followed = with_missing_rows(loaded, generation, targets, scores, compute=compute)
    trace = traced(generation, targets, followed, units=chosen)
    values, allowed = over_tokens(trace.total, chosen, len(generation.ids))
    return Scores(
        method="traced_deletion_path",
        values=values,
        features=allowed & seen_by(targets, len(generation.ids)),
        signed=False,
        settings={"target": kinds(targets), "features": features, "units": kind, "n_steps": n_steps},
    )
