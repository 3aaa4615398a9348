"""The charts of a run as plain data: each is a table whose rows also have a bar, so it reads without seeing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from llmxai.names import Status
from llmxai.report.rows import RunRow
from llmxai.report.verdict import STATUS_TEXT

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
    """Of the total, 0 to 1: the text says it."""
    length: float
    """Of the longest bar, 0 to 1."""
    status: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    said: str
    """What the chart shows, in one sentence."""
    unit: str
    """What is counted."""
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
    """Where the scale of its bar begins and ends; 0 is always on it."""
    end: float

    def at(self, value: float) -> float:
        """Place of a value on the scale, 0 to 100."""
        return 100 * (value - self.start) / (self.end - self.start)


def build_charts(rows: Sequence[RunRow]) -> tuple[Chart, ...]:
    """Statuses of tokens, the worst error of each record, the median agreement of each record."""
    counts = [sum(getattr(row, str(status)) for row in rows) for status in Status]
    gaps = [row.worst_gap_ratio for row in rows if row.worst_gap_ratio is not None]
    agreements = [row.median_spearman for row in rows if row.median_spearman is not None]
    total = sum(counts)
    return (
        Chart(
            "Tokens by status",
            f"{counts[0]} of {total} tokens agree; {total - counts[0]} are flagged." if total else "No token.",
            "tokens",
            _bars([f"{sign} {status}" for status, (sign, _) in STATUS_TEXT.items()], counts, [str(s) for s in Status]),
        ),
        Chart(
            "Largest error of a record, as a part of what is allowed",
            f"{sum(gap <= 1 for gap in gaps)} of {len(gaps)} records are within what is allowed in every token.",
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


def build_intervals(rows: Sequence[RunRow], *, seed: int = 0) -> tuple[Interval, ...]:
    """One a metric, METHOD.FIGURE, ordered by figure. The methods' values of one figure share a scale."""
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
