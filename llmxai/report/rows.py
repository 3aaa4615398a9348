"""One row per record, and the charts over all rows: what the index of a run shows."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llmxai.errors import OutputError
from llmxai.names import CURRENT, Role, Status
from llmxai.report.focus import answer_probability, first_sources
from llmxai.report.verdict import FINE, STATUS_TEXT
from llmxai.report.visible import shorten
from llmxai.store import holds_explanation, read_document, require_file, short, upgraded

ROWS = "rows.parquet"
METRIC = "metric."
"""Prefix of the columns with figures of the evaluation."""
REMAKE = "Run the same `llmxai run` again: it writes the table again from what is stored."
LARGEST = 1e30
"""Of a figure in a row: means and intervals of such numbers stay finite."""
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
    """The last text that a person wrote, shortened."""
    answer: str = ""
    sources: str = ""
    """The first sources of the answer, separated by commas."""
    probability: float | None = None
    """Of the whole answer."""
    n_targets: int = 0
    confirmed: int = 0
    contradicted: int = 0
    undecided: int = 0
    unconverged: int = 0
    agree: int = 0
    """This and the next three only in runs of earlier versions."""
    diluted: int = 0
    disagree: int = 0
    unchecked: int = 0
    worst_gap_ratio: float | None = None
    """Largest local error / tolerance of its tokens: above 1 a token is unconverged."""
    median_spearman: float | None = None
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def summarize(document: Mapping[str, Any], *, record: str, seconds: float | None = None) -> RunRow:
    """The row of one parsed explanation.json."""
    document = upgraded(document)
    targets = document["targets"]
    counts = {str(status): sum(target["status"] == status for target in targets) for status in Status}
    errors = [target.get("deletion") or target for target in targets]
    agreements = [target["agreement"]["spearman"] for target in targets]
    defined = [value for value in agreements if value is not None]
    return RunRow(
        id=record,
        prompt=shorten(_asked(document), limit=LONGEST),
        answer=shorten(_answered(document), limit=LONGEST),
        sources=shorten(", ".join(first_sources(document)), limit=LONGEST),
        probability=answer_probability(document),
        n_targets=len(targets),
        **counts,
        worst_gap_ratio=max(_ratio(error["local_error"], error["tolerance"]) for error in errors),
        median_spearman=statistics.median(defined) if defined else None,
        seconds=seconds,
    )


def _ratio(error: float, tolerance: float) -> float:
    """0 / 0 is 0: a path on which F does not change is exact."""
    if tolerance == 0:
        return 0.0 if error == 0 else LARGEST
    return float(min(error / tolerance, LARGEST))


def read_rows(run: Path) -> tuple[RunRow, ...]:
    """The rows of `run`, in its order. Raises OutputError if it holds no records.

    Sources and probability, which tables of earlier versions do not have, come from each explanation.json.
    """
    if os.path.lexists(run / ROWS):
        return tuple(_completed(row, run / "records" / row.id) for row in _from_parquet(run / ROWS))
    folders = record_folders(run)
    if not folders:
        raise OutputError(
            f"{run}: holds no explanation (explanation.json) and no run (rows.parquet, records/). Give the folder that "
            f"`llmxai explain --out` or `llmxai run --out` wrote."
        )
    return tuple(_derived(folder) for folder in folders)


def record_folders(run: Path) -> list[Path]:
    """The folders of single explanations in a run: `records/ID`, else its direct subfolders.

    Raises OutputError for a link among the records: it could lead outside the run.
    """
    records = run / "records"
    place = records if records.is_dir() else run
    try:
        entries = sorted(place.iterdir())
        if place == records and (link := next((one for one in (records, *entries) if one.is_symlink()), None)):
            raise OutputError(
                f"{link} is a link, and the records of a run are folders. Put the folder itself there, or remove the "
                f"link."
            )
        return [entry for entry in entries if holds_explanation(entry)]
    except OSError as error:
        raise OutputError(f"{run}: cannot be read ({error}). Give the folder of an explanation or of a run.") from error


def to_columns(rows: Sequence[RunRow]) -> dict[str, list[Any]]:
    """Rows as columns of rows.parquet, metrics last; None where a row has no value.

    Statuses of earlier rules are columns only where a row has them.
    """
    names = sorted({name for row in rows for name in row.metrics})
    shown = {str(status) for status in (*CURRENT, *statuses_of(rows))}
    absent = {str(status) for status in Status} - shown
    plain = [key for key in RunRow.__dataclass_fields__ if key != "metrics" and key not in absent]
    flat = [asdict(row) for row in rows]
    return {
        **{key: [row[key] for row in flat] for key in plain},
        **{f"{METRIC}{name}": [row["metrics"].get(name) for row in flat] for name in names},
    }


def statuses_of(rows: Sequence[RunRow]) -> tuple[Status, ...]:
    """The statuses that a token of the rows has; without tokens, those that a token can have now."""
    found = tuple(status for status in STATUS_TEXT if any(getattr(row, str(status)) for row in rows))
    return found or CURRENT


def count_fine(row: RunRow) -> int:
    """Tokens with a status that flags nothing."""
    return sum(getattr(row, str(status)) for status in FINE)


def _from_parquet(path: Path) -> tuple[RunRow, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pydantic import TypeAdapter, ValidationError

    try:
        require_file(path)
        rows = pq.read_table(path).to_pylist()
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise OutputError(f"{path}: cannot be read as Parquet ({short(error)}). {REMAKE}") from error
    if rows and "id" not in rows[0]:
        raise OutputError(f"{path}: has no column 'id'; its columns are {ascii(list(rows[0]))[:LONGEST]}. {REMAKE}")
    try:
        found: tuple[RunRow, ...] = TypeAdapter(tuple[RunRow, ...]).validate_python([_row(values) for values in rows])
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"][1:]))
        raise OutputError(
            f"{path}: {where} of row {fault['loc'][0]} is {ascii(fault['input'])[:LONGEST]}: {fault['msg']}. {REMAKE}"
        ) from error
    for n, row in enumerate(found):
        for value in (row.probability, row.worst_gap_ratio, row.median_spearman, row.seconds, *row.metrics.values()):
            if value is not None and abs(value) > LARGEST:
                raise OutputError(f"{path}: row {n} holds {value:g}; expected at most {LARGEST:g}. {REMAKE}")
    return found


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row; a number that is NaN or infinite is missing, as pandas writes it."""
    given = {key: value for key, value in values.items() if value is not None and not _is_no_number(value)}
    known: dict[str, Any] = {key: value for key, value in given.items() if key in RunRow.__dataclass_fields__}
    texts: dict[str, Any] = {
        key: shorten(str(known[key]), limit=LONGEST) for key in ("prompt", "answer", "error", "sources") if key in known
    }
    metrics = {key.removeprefix(METRIC): value for key, value in given.items() if key.startswith(METRIC)}
    return {**known, **texts, "id": str(values["id"]), "metrics": metrics}


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _completed(row: RunRow, folder: Path) -> RunRow:
    if row.probability is not None or row.status == "failed" or Path(row.id).name != row.id:
        return row
    if not holds_explanation(folder):
        return row
    try:
        made = summarize(read_document(folder), record=row.id)
    except OutputError:  # its page says so
        return row
    return replace(row, sources=made.sources, probability=made.probability)


def _derived(folder: Path) -> RunRow:
    """From the folder's explanation.json; a `failed` row if it cannot be read."""
    try:
        return summarize(read_document(folder), record=folder.name)
    except OutputError as error:
        return RunRow(id=folder.name, status="failed", error=shorten(str(error), limit=LONGEST))


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


GAP_EDGES = (0.1, 0.25, 0.5, 1.0, 2.0)
SPEARMAN_EDGES = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
RESAMPLES = 1000
MOST_DRAWN = 2_000_000
"""Random numbers held at a time while resampling."""


@dataclass(frozen=True)
class Bar:
    label: str
    count: int
    share: float
    """Share of the total, 0 to 1; shown as text."""
    length: float
    """Length relative to the longest bar, 0 to 1."""
    status: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    said: str
    """The message of the chart in one sentence."""
    unit: str
    """The things that are counted."""
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Interval:
    """The mean of a metric over the records, with its 95 % bootstrap interval (percentiles, 1,000 resamples)."""

    name: str
    n: int
    mean: float
    low: float
    high: float
    start: float
    """Start and end of the scale of its bar, which always includes 0."""
    end: float

    def at(self, value: float) -> float:
        """Position of a value on the scale, 0 to 100."""
        return 100 * (value - self.start) / (self.end - self.start)


def build_charts(rows: Sequence[RunRow]) -> tuple[Chart, ...]:
    """Statuses of tokens, the worst error of each record, the median agreement of each record."""
    statuses = statuses_of(rows)
    counts = [sum(getattr(row, str(status)) for row in rows) for status in statuses]
    gaps = [row.worst_gap_ratio for row in rows if row.worst_gap_ratio is not None]
    agreements = [row.median_spearman for row in rows if row.median_spearman is not None]
    total, fine = sum(counts), sum(map(count_fine, rows))
    said = f"{fine} of {total} tokens {fine_words(statuses)}; {total - fine} are flagged." if total else "No token."
    return (
        Chart(
            "Tokens by status",
            said,
            "tokens",
            _bars([f"{STATUS_TEXT[s][0]} {s}" for s in statuses], counts, [str(s) for s in statuses]),
        ),
        Chart(
            "Largest error of a record, relative to the allowed error",
            f"{sum(gap <= 1 for gap in gaps)} of {len(gaps)} records are within the allowed error for every token.",
            "records",
            _histogram(gaps, GAP_EDGES),
        ),
        Chart(
            "Median rank agreement (Spearman) of a record",
            f"The median over {len(agreements)} records is {np.median(agreements):.2f}."
            if agreements
            else "Defined for no record.",
            "records",
            _histogram(agreements, SPEARMAN_EDGES),
        ),
    )


def fine_words(statuses: Sequence[Status]) -> str:
    """What is said of tokens that are not flagged, in runs with these statuses."""
    if not {Status.AGREE, Status.DILUTED, Status.DISAGREE, Status.UNCHECKED} & set(statuses):
        return "are confirmed"
    return "are confirmed or agree" if set(statuses) & set(CURRENT[:3]) else "agree"


def build_intervals(rows: Sequence[RunRow], *, seed: int = 0) -> tuple[Interval, ...]:
    """One per metric, METHOD.FIGURE, sorted by figure. All methods share the scale of a figure."""
    names = sorted({name for row in rows for name in row.metrics}, key=lambda name: (_family(name), name))
    found = [_interval(name, [row.metrics[name] for row in rows if name in row.metrics], seed=seed) for name in names]
    scales: dict[str, tuple[float, float]] = {}
    for metric in found:
        start, end = scales.get(_family(metric.name), (metric.start, metric.end))
        scales[_family(metric.name)] = min(start, metric.start), max(end, metric.end)
    return tuple(
        replace(metric, start=scales[_family(metric.name)][0], end=scales[_family(metric.name)][1]) for metric in found
    )


def _family(name: str) -> str:
    return name.rpartition(".")[2]


def _interval(name: str, values: Sequence[float], *, seed: int) -> Interval:
    data, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    rounds = max(1, MOST_DRAWN // data.size)
    means: list[float] = []
    while len(means) < RESAMPLES:
        drawn = rng.integers(data.size, size=(min(rounds, RESAMPLES - len(means)), data.size))
        means.extend(data[drawn].mean(axis=1).tolist())
    low, high = np.percentile(means, [2.5, 97.5])
    start, end = min(0.0, float(low)), max(0.0, float(high))
    return Interval(
        name, data.size, float(data.mean()), float(low), float(high), start, end if end > start else start + 1.0
    )


def _histogram(values: Sequence[float], edges: Sequence[float]) -> tuple[Bar, ...]:
    """Counts of values up to each edge, and above the last."""
    places = np.searchsorted(edges, values, side="left")
    counts = np.bincount(places, minlength=len(edges) + 1).tolist()
    shown = [f"{edge:.2f}".replace("-", "−") for edge in edges]
    labels = [
        f"up to {shown[0]}",
        *(f"{a} to {b}" for a, b in pairwise(shown)),
        f"over {shown[-1]}",
    ]
    return _bars(labels, counts, [""] * len(counts))


def _bars(labels: Sequence[str], counts: Sequence[int], statuses: Sequence[str]) -> tuple[Bar, ...]:
    total, most = sum(counts) or 1, max(counts, default=0) or 1
    return tuple(
        Bar(label, count, count / total, count / most, status)
        for label, count, status in zip(labels, counts, statuses, strict=True)
    )
