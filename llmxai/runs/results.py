"""From the ledger's entries to rows.parquet, measures.parquet, tables, plots and pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmxai.errors import OutputError
from llmxai.evidence.files import replacing
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
Entries = Callable[[], Iterable[Entry]]
"""Reads the entries anew at each call: a long run's are never all in memory."""


def write_results(out: Path, recipe: Recipe, entries: Entries) -> None:
    """Write everything that is derived from the entries; the same entries give the same bytes but for times."""
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
    """The long form: one line a row, method and figure."""
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


GROUP = 1000
"""Rows that are written at a time."""


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Parquet, whole or not at all. Raises OutputError."""
    rest = iter(rows)
    try:
        with replacing(path) as stream, pq.ParquetWriter(stream, schema) as writer:
            while some := list(islice(rest, GROUP)):
                writer.write_table(pa.Table.from_pylist(some, schema=schema))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}). Choose another folder with --out.") from error
