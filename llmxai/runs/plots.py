"""One figure over all methods as a dot-and-interval plot: geometry as plain data, drawn by a template."""

from __future__ import annotations

from dataclasses import dataclass

from llmxai.evaluation.measure import BETTER
from llmxai.runs.tables import Tables

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


CONTROLS = frozenset({"random", "recency", "leave_one_out"})


def build_plot(tables: Tables, *, source: str, figure: str) -> Plot | None:
    """The plot of one figure; None where no method has it."""
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
            control=cell.method in CONTROLS,
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
