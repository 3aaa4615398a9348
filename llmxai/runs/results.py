"""From the ledger's entries to rows.parquet, measures.parquet, tables, plots and pages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmxai.runs.ledger import write_atomically
from llmxai.runs.pages import write_pages
from llmxai.runs.recipe import Recipe
from llmxai.runs.tables import tabulate

ROW_SCHEMA = {
    "id": pa.string(),
    "source": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "prompt": pa.string(),
    "answer": pa.string(),
    "n_tokens": pa.int64(),
    "n_targets": pa.int64(),
    "agree": pa.int64(),
    "diluted": pa.int64(),
    "disagree": pa.int64(),
    "unconverged": pa.int64(),
    "unchecked": pa.int64(),
    "worst_gap_ratio": pa.float64(),
    "median_spearman": pa.float64(),
    "target_f": pa.float64(),
    "seconds": pa.float64(),
    "oom_halvings": pa.int64(),
    "record": pa.string(),
    "explanation_sha256": pa.string(),
    "maps_sha256": pa.string(),
}
"""Columns of rows.parquet, besides `metric.METHOD.FIGURE` (of the headlines) and `field.NAME` (what a suite knows)."""

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
"""Columns of measures.parquet: one line a row, method and figure; one without a figure where a method gave none."""

Entry = Mapping[str, Any]


def write_results(out: Path, recipe: Recipe, entries: Sequence[Entry]) -> None:
    """Write everything that is derived from the entries; the same entries give the same bytes but for times."""
    write_table(out / "rows.parquet", rows_table(entries))
    measures = measure_lines(entries)
    if measures:
        write_table(out / "measures.parquet", pa.Table.from_pylist(measures, schema=MEASURE_SCHEMA))
    resamples = recipe.evaluate.resamples if recipe.evaluate else 0
    seed = recipe.evaluate.seed if recipe.evaluate else 0
    write_pages(out, recipe, entries, tabulate(measures, resamples=resamples, seed=seed))


def write_table(path: Path, table: pa.Table) -> None:
    """Parquet, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def rows_table(entries: Sequence[Entry]) -> pa.Table:
    """One row a record, in order."""
    flat = [{**entry, **_metrics(entry), **_fields(entry)} for entry in entries]
    extra = sorted({name for row in flat for name in row if name.startswith(("metric.", "field."))})
    kinds = {name: pa.array([row.get(name) for row in flat]).type for name in extra}
    schema = pa.schema([*ROW_SCHEMA.items(), *kinds.items()])
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in flat], schema=schema)


def measure_lines(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The long form: one line a row, method and figure."""
    lines = []
    for entry in entries:
        for measured in entry.get("measured", ()):
            shared = {
                "id": entry["id"],
                "source": entry["source"],
                "method": measured["name"],
                **{key: measured[key] for key in ("seconds", "nodes", "converged", "error")},
            }
            figures = measured["figures"] or {None: None}
            lines += [{**shared, "figure": figure, "value": value} for figure, value in figures.items()]
    return lines


def _metrics(entry: Entry) -> dict[str, float]:
    return {
        f"metric.{measured['name']}.{figure}": float(value)
        for measured in entry.get("measured", ())
        for figure, value in measured["figures"].items()
        if figure in HEADLINES
    }


def _fields(entry: Entry) -> dict[str, Any]:
    return {f"field.{name}": str(value) for name, value in entry.get("fields", {}).items()}
