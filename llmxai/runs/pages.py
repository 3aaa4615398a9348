"""Tables as CSV, plots as SVG, and the pages that show both. No script, no request: they open from a file."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmxai.evaluation import Estimate
from llmxai.evaluation.measure import BETTER
from llmxai.runs.ledger import write_atomically
from llmxai.runs.plots import CONTROLS, Plot, build_plot
from llmxai.runs.recipe import Recipe
from llmxai.runs.tables import ALL, Tables

PAGES = Environment(
    loader=PackageLoader("llmxai.runs", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_pages(out: Path, recipe: Recipe, tables: Tables, *, ok: int, failed: int) -> None:
    """Write tables/, plots/ and evaluation.html (where something was measured) of a run with `ok` and `failed` rows."""
    style = PAGES.loader.get_source(PAGES, "page.css")[0] if PAGES.loader else ""
    shared = {
        "recipe": recipe,
        "style": Markup(style),
        "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        "n_ok": ok,
        "n_failed": failed,
        "number": number,
    }
    if recipe.evaluate is not None:
        _write(out / "tables" / "figures.csv", _figures_csv(tables))
        _write(out / "tables" / "cost.csv", _cost_csv(tables))
        _write(out / "tables" / "summary.md", _markdown(tables))
        plots = [
            plot
            for figure in tables.figures
            if (plot := build_plot(tables, source=tables.sources[-1], figure=figure)) is not None
        ]
        for plot in plots:
            _write(out / "plots" / f"{plot.figure}.svg", _svg(plot))
        page = PAGES.get_template("evaluation.html").render(
            **shared,
            settings=recipe.evaluate,
            tables=tables,
            better=BETTER,
            controls=CONTROLS,
            best=lambda source, figure: best_of(tables, source, figure),
            signed=lambda value: f"{value:+.2g}",
            files=("figures.csv", "cost.csv", "summary.md"),
            plots=[Markup(_svg(plot)) for plot in plots],
        )
        _write(out / "evaluation.html", page)


def number(value: float) -> str:
    """Three digits, never in powers of ten where that can be read plainly."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def best_of(tables: Tables, source: str, figure: str) -> frozenset[str]:
    """The methods with the best mean; several where they share it, none where it tells no method from another."""
    cells = [cell for method in tables.methods if (cell := tables.cell(source, method, figure)) is not None]
    most = max((BETTER[figure] * cell.value.mean for cell in cells), default=0.0)
    best = frozenset(cell.method for cell in cells if BETTER[figure] * cell.value.mean == most)
    return best if len(best) < len(cells) else frozenset()


def _svg(plot: Plot) -> str:
    return PAGES.get_template("plot.svg").render(plot=plot)


def _figures_csv(tables: Tables) -> str:
    head = ["source", "method", "figure", "n", "mean", "low", "high"]
    for other in ("leave_one_out", "random"):
        head += [f"minus_{other}", f"minus_{other}_low", f"minus_{other}_high"]
    rows = [
        [
            *(cell.source, cell.method, cell.figure, cell.value.n),
            *_three(cell.value),
            *_three(cell.against_leave_one_out),
            *_three(cell.against_random),
        ]
        for cell in tables.cells
    ]
    return _csv([head, *rows])


def _three(estimate: Estimate | None) -> list[float | None]:
    return [None, None, None] if estimate is None else [estimate.mean, estimate.low, estimate.high]


def _cost_csv(tables: Tables) -> str:
    head = ["method", "median_seconds", "median_nodes", "converged_share", "errors"]
    return _csv([head, *([c.method, c.seconds, c.nodes, c.converged, " ".join(c.errors)] for c in tables.costs)])


def _markdown(tables: Tables) -> str:
    """One table a source, the best first by the first figure: what documents and pull requests can hold."""
    costs = {cost.method: cost for cost in tables.costs}
    said = []
    for source in tables.sources:
        cells = {(c.method, c.figure): c.value for c in tables.cells if c.source == source}
        figures = [figure for figure in tables.figures if any(key[1] == figure for key in cells)]
        columns = ["method", *figures, "seconds", "nodes", "converged"]
        rows = []
        for method in sorted(tables.methods, key=lambda name: _rank(cells.get((name, figures[0])), figures[0])):
            cost = costs[method]
            held = "" if cost.converged is None else f"{cost.converged:.0%}"
            nodes = "" if cost.nodes is None else number(cost.nodes)
            values = [_interval(cells.get((method, figure))) for figure in figures]
            rows.append([method, *values, number(cost.seconds), nodes, held])
        n = max(value.n for value in cells.values())
        lines = [columns, ["---"] * len(columns), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        said.append(f"## {'All' if source == ALL else source}, {n} question{'' if n == 1 else 's'}\n\n{table}\n")
    return "\n".join(said)


def _rank(value: Estimate | None, figure: str) -> float:
    return float("inf") if value is None else -BETTER[figure] * value.mean


def _interval(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.2f}" + ("" if value.low is None else f" ({value.low:.2f} to {value.high:.2f})")


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode("utf-8"))
