"""Tables of an evaluation: each method's mean with its interval, beside leave-one-out and chance, and its cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from llmxai.evaluation import LEAVE_ONE_OUT, Estimate, estimate, paired_difference
from llmxai.evaluation.measure import BETTER

ALL = "all"
"""The source of lines over every question, whatever its suite."""


@dataclass(frozen=True)
class Cell:
    """One method, one figure, one source."""

    source: str
    method: str
    figure: str
    value: Estimate
    against_leave_one_out: Estimate | None
    """Paired difference; None for leave-one-out itself, or where no question has both."""
    against_random: Estimate | None


@dataclass(frozen=True)
class Cost:
    """What one method took, over all questions."""

    method: str
    seconds: float
    """Median wall time a question."""
    nodes: float | None
    """Median gradient nodes; None for a method that counts none."""
    converged: float | None
    """Share of the questions whose certificate holds; None for a method without one."""
    errors: tuple[str, ...]
    """Why it gave no figure, without repetition."""


@dataclass(frozen=True)
class Tables:
    cells: tuple[Cell, ...]
    costs: tuple[Cost, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.source for cell in self.cells))

    @property
    def figures(self) -> tuple[str, ...]:
        present = {cell.figure for cell in self.cells}
        return tuple(figure for figure in BETTER if figure in present)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(cost.method for cost in self.costs)

    def cell(self, source: str, method: str, figure: str) -> Cell | None:
        """The one cell of this place; None where there is none."""
        found = [c for c in self.cells if (c.source, c.method, c.figure) == (source, method, figure)]
        return found[0] if found else None


def tabulate(lines: Iterable[Mapping[str, Any]], *, resamples: int, seed: int) -> Tables:
    """Means over questions of the measures' lines, by source and over all, with bootstrap intervals.

    The lines are read once; what is kept of them is one number a question, method and figure, and the costs.
    """
    values: dict[tuple[str, str, str], dict[str, float]] = {}
    sources: dict[str, None] = {}
    costs: dict[str, dict[str, _Taken]] = {}
    for line in lines:
        sources[line["source"]] = None
        costs.setdefault(line["method"], {})[line["id"]] = _Taken(
            line["seconds"], line["nodes"], line["converged"], line["error"]
        )
        if line["figure"] is not None:
            values.setdefault((line["source"], line["method"], line["figure"]), {})[line["id"]] = line["value"]
    if len(sources) > 1:
        for (_, method, figure), own in list(values.items()):
            values.setdefault((ALL, method, figure), {}).update(own)
    cells = []
    for (source, method, figure), own in sorted(values.items(), key=lambda item: _place(item[0], list(sources))):
        others = [
            None if method == other else _difference(own, values.get((source, other, figure), {}), resamples, seed)
            for other in (LEAVE_ONE_OUT, "random")
        ]
        mean = estimate(np.array(list(own.values())), resamples=resamples, seed=seed)
        cells.append(Cell(source, method, figure, mean, *others))
    return Tables(cells=tuple(cells), costs=tuple(_cost(method, list(own.values())) for method, own in costs.items()))


class _Taken(NamedTuple):
    """What one method took for one question."""

    seconds: float
    nodes: int | None
    converged: bool | None
    error: str


def _place(key: tuple[str, str, str], sources: Sequence[str]) -> tuple[int, int, str]:
    source, method, figure = key
    return (sources.index(source) if source in sources else len(sources), list(BETTER).index(figure), method)


def _difference(own: Mapping[str, float], other: Mapping[str, float], resamples: int, seed: int) -> Estimate | None:
    both = [row for row in own if row in other]
    if not both:
        return None
    a, b = (np.array([values[row] for row in both]) for values in (own, other))
    return paired_difference(a, b, resamples=resamples, seed=seed)


def _cost(method: str, own: Sequence[_Taken]) -> Cost:
    done = [taken for taken in own if not taken.error]
    nodes = [taken.nodes for taken in done if taken.nodes is not None]
    held = [taken.converged for taken in done if taken.converged is not None]
    return Cost(
        method=method,
        seconds=median(taken.seconds for taken in done) if done else 0.0,
        nodes=float(median(nodes)) if nodes else None,
        converged=sum(held) / len(held) if held else None,
        errors=tuple(sorted({taken.error for taken in own if taken.error})),
    )
