"""One row a record: what the index of a run lists, read from rows.parquet or derived from each explanation.json."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmxai.errors import OutputError
from llmxai.names import Role, Status
from llmxai.report.visible import shorten

ROWS = "rows.parquet"
METRIC = "metric."
"""Prefix of the columns that hold a figure of the evaluation."""
LONGEST = 240
"""Characters of prompt, answer and error in a row."""


@dataclass(frozen=True)
class RunRow:
    """The columns of rows.parquet; every `metrics` entry is a column `metric.NAME`."""

    id: str
    """Name of the record's folder."""
    status: str = "ok"
    """`ok` or `failed`."""
    error: str = ""
    prompt: str = ""
    """The last thing that a person wrote, shortened."""
    answer: str = ""
    n_targets: int = 0
    agree: int = 0
    diluted: int = 0
    disagree: int = 0
    unconverged: int = 0
    unchecked: int = 0
    worst_gap_ratio: float | None = None
    """Largest local error / tolerance of its tokens: above 1 a token is unconverged."""
    median_spearman: float | None = None
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def summarize(document: Mapping[str, Any], *, record: str, seconds: float | None = None) -> RunRow:
    """The row of one parsed explanation.json."""
    targets = document["targets"]
    counts = {str(status): sum(target["status"] == status for target in targets) for status in Status}
    agreements = [target["agreement"]["spearman"] for target in targets]
    defined = [value for value in agreements if value is not None]
    return RunRow(
        id=record,
        prompt=shorten(_asked(document), limit=LONGEST),
        answer=shorten(_answered(document), limit=LONGEST),
        n_targets=len(targets),
        **counts,
        worst_gap_ratio=max(target["local_error"] / target["tolerance"] for target in targets),
        median_spearman=statistics.median(defined) if defined else None,
        seconds=seconds,
    )


def read_rows(run: Path) -> tuple[RunRow, ...]:
    """The rows of `run`, in its own order. Raises OutputError where it holds no records."""
    if (run / ROWS).is_file():
        return _from_parquet(run / ROWS)
    folders = record_folders(run)
    if not folders:
        raise OutputError(
            f"{run}: holds no explanation (explanation.json) and no run (rows.parquet, records/). Give the folder that "
            f"`llmxai explain --out` or `llmxai run --out` wrote."
        )
    return tuple(_derived(folder) for folder in folders)


def record_folders(run: Path) -> list[Path]:
    """The folders of single explanations in a run: `records/ID`, or else the folders right in it."""
    place = run / "records" if (run / "records").is_dir() else run
    try:
        return sorted(entry for entry in place.iterdir() if (entry / "explanation.json").is_file())
    except OSError as error:
        raise OutputError(f"{run}: cannot be read ({error}). Give the folder of an explanation or of a run.") from error


def to_columns(rows: Sequence[RunRow]) -> dict[str, list[Any]]:
    """Rows as columns, the metrics last, None where a row lacks one: what goes into rows.parquet."""
    names = sorted({name for row in rows for name in row.metrics})
    plain = [key for key in RunRow.__dataclass_fields__ if key != "metrics"]
    flat = [asdict(row) for row in rows]
    return {
        **{key: [row[key] for row in flat] for key in plain},
        **{f"{METRIC}{name}": [row["metrics"].get(name) for row in flat] for name in names},
    }


def _from_parquet(path: Path) -> tuple[RunRow, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"{path}: cannot be read as Parquet ({error}).") from error
    if rows and "id" not in rows[0]:
        raise OutputError(f"{path}: has no column 'id'; its columns are {', '.join(rows[0])}.")
    return tuple(_row(values) for values in rows)


def _row(values: Mapping[str, Any]) -> RunRow:
    known: dict[str, Any] = {
        key: value
        for key, value in values.items()
        if key in RunRow.__dataclass_fields__ and value is not None and key != "id"
    }
    for key in ("prompt", "answer", "error"):
        if key in known:
            known[key] = shorten(str(known[key]), limit=LONGEST)
    metrics = {
        key.removeprefix(METRIC): float(value)
        for key, value in values.items()
        if key.startswith(METRIC) and value is not None and math.isfinite(value)
    }
    return RunRow(id=str(values["id"]), metrics=metrics, **known)


def _derived(folder: Path) -> RunRow:
    """From the folder's explanation.json; a row that says `failed` where it cannot be read."""
    try:
        document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        return summarize(document, record=folder.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunRow(
            id=folder.name, status="failed", error=f"explanation.json cannot be read ({type(error).__name__}: {error})"
        )


def _asked(document: Mapping[str, Any]) -> str:
    """The text of the last role in the prompt that people wrote."""
    said: list[str] = []
    before = None
    for token in document["tokens"][: document["generation"]["prompt_len"]]:
        role = token["role"]
        if role not in (Role.BOS, Role.TEMPLATE):
            said = [*said, token["text"]] if role == before else [token["text"]]
        before = role
    return "".join(said).strip()


def _answered(document: Mapping[str, Any]) -> str:
    end = len(document["tokens"]) - (document["generation"]["stop"] == "eos")
    return "".join(token["text"] for token in document["tokens"][document["generation"]["prompt_len"] : end]).strip()
