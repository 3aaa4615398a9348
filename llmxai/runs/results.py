"""From the ledger's entries to rows.parquet, measures.parquet, tables and pages; removal of redacted texts."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmxai.evaluation import Estimate
from llmxai.evaluation.measure import BETTER
from llmxai.names import CURRENT
from llmxai.report import page_style
from llmxai.runs.ledger import write_atomically, write_table
from llmxai.runs.recipe import Recipe
from llmxai.runs.tables import ALL, CONTROL_NAMES, Plot, Tables, Winner, build_plot, tabulate
from llmxai.text import csv_cell

ROW_SCHEMA = {
    "id": pa.string(),
    "source": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "prompt": pa.string(),
    "answer": pa.string(),
    "sources": pa.string(),
    "probability": pa.float64(),
    "n_tokens": pa.int64(),
    "n_targets": pa.int64(),
    **{str(status): pa.int64() for status in CURRENT},
    "worst_gap_ratio": pa.float64(),
    "median_spearman": pa.float64(),
    "target_f": pa.float64(),
    "seconds": pa.float64(),
    "oom_halvings": pa.int64(),
    "record": pa.string(),
    "explanation_sha256": pa.string(),
    "maps_sha256": pa.string(),
}
"""Columns of rows.parquet, besides `metric.METHOD.FIGURE` (for `HEADLINES`) and `field.NAME` (facts of a suite)."""

HEADLINES = ("mrr", "comprehensiveness", "lds", "randomised_spearman")
"""Figures that are columns of rows.parquet; measures.parquet has all of them."""

MEASURE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("method", pa.string()),
        ("figure", pa.string()),
        ("value", pa.float64()),
        ("seconds", pa.float64()),
        ("nodes", pa.int64()),
        ("converged", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""Columns of measures.parquet: one line per row, method and figure; one without a figure if a method gave none."""

Entry = Mapping[str, Any]
Entries = Callable[[], Iterable[Entry]]
"""Reads the entries again at each call: those of a long run are never all in memory."""


def write_results(out: Path, recipe: Recipe, entries: Entries) -> None:
    """Write everything derived from the entries; apart from times, the same entries give the same bytes."""
    statuses: Counter[str] = Counter()
    extra: set[str] = set()
    measured = False
    for entry in entries():
        statuses[entry["status"]] += 1
        extra.update(_metrics(entry), _fields(entry))
        measured = measured or bool(entry.get("measured"))
    schema = pa.schema([*ROW_SCHEMA.items(), *((name, _kind(name)) for name in sorted(extra))])
    flat = ({**entry, **_metrics(entry), **_fields(entry)} for entry in entries())
    write_table(out / "rows.parquet", ({name: row.get(name) for name in schema.names} for row in flat), schema)
    if measured:
        write_table(out / "measures.parquet", measure_lines(entries()), MEASURE_SCHEMA)
    resamples = recipe.evaluate.resamples if recipe.evaluate else 0
    seed = recipe.evaluate.seed if recipe.evaluate else 0
    tables = tabulate(measure_lines(entries()), resamples=resamples, seed=seed)
    write_pages(out, recipe, tables, ok=statuses["ok"], failed=statuses.total() - statuses["ok"])


def _kind(name: str) -> pa.DataType:
    return pa.float64() if name.startswith("metric.") else pa.string()


def measure_lines(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    """The long form: one line per row, method and figure."""
    for entry in entries:
        for measured in entry.get("measured", ()):
            shared = {
                "id": entry["id"],
                "source": entry["source"],
                "method": measured["name"],
                **{key: measured[key] for key in ("seconds", "nodes", "converged", "error")},
            }
            figures = measured["figures"] or {None: None}
            yield from ({**shared, "figure": figure, "value": value} for figure, value in figures.items())


def _metrics(entry: Entry) -> dict[str, float]:
    return {
        f"metric.{measured['name']}.{figure}": float(value)
        for measured in entry.get("measured", ())
        for figure, value in measured["figures"].items()
        if figure in HEADLINES
    }


def _fields(entry: Entry) -> dict[str, Any]:
    return {f"field.{name}": str(value) for name, value in entry.get("fields", {}).items()}


PAGES = Environment(
    loader=PackageLoader("llmxai.runs", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_pages(out: Path, recipe: Recipe, tables: Tables, *, ok: int, failed: int) -> None:
    """Write tables/, plots/ and evaluation.html (if something was measured) of a run with `ok` and `failed` rows."""
    style = page_style() + (PAGES.loader.get_source(PAGES, "page.css")[0] if PAGES.loader else "")
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
            controls=CONTROL_NAMES,
            best=lambda source, figure: best_of(tables, source, figure),
            signed=lambda value: f"{value:+.2g}",
            files=("figures.csv", "cost.csv", "summary.md"),
            winner=main_winner(tables),
            winners=[(winner, winner_sentence(winner)) for winner in tables.winners],
            plots=[Markup(_svg(plot)) for plot in plots],
        )
        _write(out / "evaluation.html", page)


FIGURES = {
    "lds": "predicting what removals do (LDS, a rank correlation)",
    "mrr": "finding the planted source (MRR, 1 if it always comes first)",
    "mrr_abs": "finding the planted source, without signs (MRR)",
    "mrr_sentence": "finding the sentence with the planted source (MRR)",
    "mrr_document": "finding the document with the planted source (MRR)",
    "precision": "finding the planted source among the first (precision)",
    "precision_abs": "finding the planted source among the first, without signs (precision)",
    "comprehensiveness": "naming parts that matter (comprehensiveness, nats)",
    "sufficiency": "naming parts that suffice (sufficiency, nats; less is better)",
    "top_1_drop": "the fall without its first source (nats)",
    "top_3_drop": "the fall without its first three sources (nats)",
    "top_5_drop": "the fall without its first five sources (nats)",
    "randomised_spearman": "depending on the weights (less is better)",
}
"""What a figure measures, for the sentence on the winner."""
FEW = 10
"""Questions below which the sentence on the winner concludes nothing."""
MAIN = ("lds", "mrr", "comprehensiveness")
"""The figures that decide the sentence at the top, the first one that there is."""


def main_winner(tables: Tables) -> Winner | None:
    """The best method on the main figure; None if no figure has two methods."""
    by = {winner.figure: winner for winner in tables.winners}
    return next((by[figure] for figure in (*MAIN, *by) if figure in by), None)


def winner_sentence(winner: Winner) -> str:
    """Who is best on a figure, by how much, and whether that could be chance."""
    value, lead = winner.value, winner.lead
    n = f"{value.n} question{'' if value.n == 1 else 's'}"
    said = f"Best at {FIGURES.get(winner.figure, winner.figure)}: {winner.method}, {_with_interval(value)} over {n}."
    if lead.low is None:
        return f"{said} Too few questions to compare it with {winner.other}, the next ({signed_number(lead.mean)})."
    judged = "more than chance" if winner.certain else "which may be chance"
    if lead.n < FEW:
        judged = f"{lead.n} questions are too few to conclude from"
    return f"{said} It leads {winner.other}, the next, by {_with_interval(lead)}: {judged}."


def _with_interval(value: Estimate) -> str:
    interval = "" if value.low is None or value.high is None else f" ({value.low:.2f} to {value.high:.2f})"
    return f"{value.mean:.2f}{interval}".replace("-", "−")


def signed_number(value: float) -> str:
    """Two digits with a sign."""
    return f"{value:+.2g}".replace("-", "−")


def number(value: float) -> str:
    """Three digits, without powers of ten for large numbers."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def best_of(tables: Tables, source: str, figure: str) -> frozenset[str]:
    """The methods with the best mean; several if they tie, none if all methods tie."""
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
    """One Markdown table per source, best first by the first figure, for documents and pull requests."""
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
        table = "\n".join(f"| {' | '.join(map(_in_markdown, line))} |" for line in lines)
        title = "All" if source == ALL else _in_markdown(source)
        said.append(f"## {title}, {n} question{'' if n == 1 else 's'}\n\n{table}\n")
    return "\n".join(said)


def _in_markdown(text: str) -> str:
    """On one line, in one cell, and no HTML."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _rank(value: Estimate | None, figure: str) -> float:
    return float("inf") if value is None else -BETTER[figure] * value.mean


def _interval(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.2f}" + ("" if value.low is None else f" ({value.low:.2f} to {value.high:.2f})")


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:  # a carriage return would not be quoted, and begin a row
        cells = [csv_cell(value) for value in row]
        writer.writerow([cell.replace("\r", "\n") if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode("utf-8"))
