"""Tables and plots of an evaluation: means with intervals, compared with leave-one-out and chance, and costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from llmxai.evaluation import LEAVE_ONE_OUT, Estimate, estimate, paired_difference
from llmxai.evaluation.measure import BETTER, CONTROLS

CONTROL_NAMES = frozenset(control.name for control in CONTROLS)
ALL = "all"
"""The source name of lines over all questions, whatever their suite."""


@dataclass(frozen=True)
class Cell:
    """One method, one figure, one source."""

    source: str
    method: str
    figure: str
    value: Estimate
    against_leave_one_out: Estimate | None
    """Paired difference; None for leave-one-out itself, or if no question has both."""
    against_random: Estimate | None


@dataclass(frozen=True)
class Cost:
    """The cost of one method over all questions."""

    method: str
    seconds: float
    """Median wall time per question."""
    nodes: float | None
    """Median gradient nodes; None for a method that counts none."""
    converged: float | None
    """Share of the questions whose certificate holds; None for a method without one."""
    errors: tuple[str, ...]
    """The distinct reasons why it gave no figure."""


@dataclass(frozen=True)
class Winner:
    """The best method on one figure over all questions, and its lead over the next one."""

    figure: str
    method: str
    value: Estimate
    other: str
    """The next best method that is no control."""
    lead: Estimate
    """Paired difference of the two on the questions that both have, so that above 0 is better."""

    @property
    def certain(self) -> bool:
        """Whether the interval of the lead excludes 0."""
        return self.lead.low is not None and self.lead.low > 0


@dataclass(frozen=True)
class Tables:
    cells: tuple[Cell, ...]
    costs: tuple[Cost, ...]
    winners: tuple[Winner, ...] = ()
    """One for each figure that two methods have, controls aside."""

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
        """The cell, or None if there is none."""
        found = [c for c in self.cells if (c.source, c.method, c.figure) == (source, method, figure)]
        return found[0] if found else None


def tabulate(lines: Iterable[Mapping[str, Any]], *, resamples: int, seed: int) -> Tables:
    """Means over questions of the measures' lines, by source and over all, with bootstrap intervals.

    The lines are read once; only one number per question, method and figure, and the costs are kept.
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
    return Tables(
        cells=tuple(cells),
        costs=tuple(_cost(method, list(own.values())) for method, own in costs.items()),
        winners=tuple(_winners(values, cells, resamples=resamples, seed=seed)),
    )


def _winners(
    values: Mapping[tuple[str, str, str], Mapping[str, float]], cells: Sequence[Cell], *, resamples: int, seed: int
) -> Iterator[Winner]:
    """Over all questions: the last source of the cells."""
    source = cells[-1].source if cells else ""
    for figure, way in BETTER.items():
        own = [c for c in cells if (c.source, c.figure) == (source, figure) and c.method not in CONTROL_NAMES]
        ranked = sorted(own, key=lambda cell: (-way * cell.value.mean, cell.method))
        if len(ranked) < 2:
            continue
        first, second = ranked[:2]
        ours, theirs = (values[source, cell.method, figure] for cell in (first, second))
        both = [row for row in ours if row in theirs]
        if not both:
            continue
        a, b = (way * np.array([side[row] for row in both]) for side in (ours, theirs))
        lead = paired_difference(a, b, resamples=resamples, seed=seed)
        yield Winner(figure, first.method, first.value, second.method, lead)


class _Taken(NamedTuple):
    """The cost of one method for one question."""

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


LABEL, PLOT, RIGHT, TOP, ROW = 300, 420, 20, 46, 24
TICKS = 5


@dataclass(frozen=True)
class Mark:
    """One method's mean and interval, in pixels."""

    method: str
    y: float
    x: float
    low: float | None
    high: float | None
    text: str
    control: bool


@dataclass(frozen=True)
class Tick:
    x: float
    text: str


@dataclass(frozen=True)
class Plot:
    """All methods on one figure and source, best first."""

    figure: str
    source: str
    title: str
    width: int
    height: int
    label: int
    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]


def build_plot(tables: Tables, *, source: str, figure: str) -> Plot | None:
    """The plot of one figure; None if no method has it."""
    cells = [cell for method in tables.methods if (cell := tables.cell(source, method, figure)) is not None]
    if not cells:
        return None
    cells.sort(key=lambda cell: (-BETTER[figure] * cell.value.mean, cell.method))
    bounds = [v for c in cells for v in (c.value.mean, c.value.low, c.value.high) if v is not None]
    low, high = min(bounds), max(bounds)
    if high == low:
        low, high = low - 0.5, high + 0.5

    def at(value: float) -> float:
        return round(LABEL + (value - low) / (high - low) * PLOT, 1)

    marks = tuple(
        Mark(
            method=cell.method,
            y=TOP + ROW * (i + 0.5),
            x=at(cell.value.mean),
            low=None if cell.value.low is None else at(cell.value.low),
            high=None if cell.value.high is None else at(cell.value.high),
            text=f"{cell.value.mean:.3g}",
            control=cell.method in CONTROL_NAMES,
        )
        for i, cell in enumerate(cells)
    )
    steps = [low + (high - low) * i / (TICKS - 1) for i in range(TICKS)]
    better = "larger is better" if BETTER[figure] > 0 else "smaller is better"
    return Plot(
        figure=figure,
        source=source,
        title=f"{figure} ({better}), {source}, mean of {max(c.value.n for c in cells)} questions with 95 % interval",
        width=LABEL + PLOT + RIGHT + 50,
        height=TOP + ROW * len(cells) + 12,
        label=LABEL,
        marks=marks,
        ticks=tuple(Tick(at(value), f"{value:.2g}") for value in steps),
    )
