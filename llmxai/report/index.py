"""The index of a run as plain data, without HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from llmxai.names import Status
from llmxai.report.rows import (
    Chart,
    Interval,
    RunRow,
    build_charts,
    build_intervals,
    count_fine,
    fine_words,
    statuses_of,
)
from llmxai.report.tables import Setting, build_settings
from llmxai.report.verdict import NOT_PROOF
from llmxai.report.view import Provenance, build_provenance_box
from llmxai.report.visible import Text, label, plain, visible

FAILED = "failed"


@dataclass(frozen=True)
class IndexRow:
    """One record."""

    id: Text
    record: Text
    """Its id in the evidence log; empty if unknown."""
    href: str | None
    """Its page, relative to the index; None if there is none."""
    prompt: Text
    answer: Text
    """The answer, or why there is none."""
    sources: Text
    """The first sources of the answer."""
    review: Text
    """The decisions of reviewers, by the evidence log."""
    failed: bool
    counts: tuple[int, ...]
    """Tokens by status, in the order of `IndexView.statuses`."""
    n_targets: int
    probability: float | None
    """Of the whole answer."""
    seconds: float | None


@dataclass(frozen=True)
class IndexView:
    title: str
    headline: Text
    sentences: tuple[str, ...]
    not_proof: str
    statuses: tuple[Status, ...]
    """Those that a token of the run has."""
    rows: tuple[IndexRow, ...]
    reviewed: int
    """Rows that a reviewer decided on."""
    charts: tuple[Chart, ...]
    intervals: tuple[Interval, ...]
    evaluation: str | None
    """Address of the run's evaluation page, relative to the index."""
    settings: tuple[Setting, ...]
    provenance: Provenance | None


def build_index(
    rows: Sequence[RunRow],
    *,
    name: str,
    place: str = "records/",
    pages: Mapping[str, str] | None = None,
    evaluation: str | None = None,
    manifest: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    records: Mapping[str, str] | None = None,
    reviews: Mapping[str, Sequence[str]] | None = None,
) -> IndexView:
    """The index of the run `name`.

    `place`: where the records' folders are, relative to the index. `pages`: the names of the pages, by id; None: all
    that did not fail have `report.html`. `evaluation`: a page to link to. `manifest` (what the run was) and
    `provenance` (llmxai/report/provenance.py) are shown unchanged. `records`: ids in the evidence log, by row id;
    `reviews`: reviewers' decisions in it, by the same.
    """
    statuses = statuses_of(rows)
    return IndexView(
        statuses=statuses,
        title=f"Run {plain(visible(name))}: {_records(len(rows))}",
        headline=visible(name),
        sentences=_sentences(rows),
        not_proof=NOT_PROOF,
        rows=tuple(
            _row(row, place, pages, (records or {}).get(row.id, ""), (reviews or {}).get(row.id, ()), statuses)
            for row in rows
        ),
        reviewed=sum(bool((reviews or {}).get(row.id)) for row in rows),
        charts=build_charts(rows),
        intervals=build_intervals(rows),
        evaluation=evaluation,
        settings=build_settings(manifest or {}),
        provenance=build_provenance_box(provenance),
    )


def _row(
    row: RunRow,
    place: str,
    pages: Mapping[str, str] | None,
    record: str,
    reviews: Sequence[str],
    statuses: Sequence[Status],
) -> IndexRow:
    failed = row.status == FAILED
    page = ("" if failed else "report.html") if pages is None else pages.get(row.id, "")
    return IndexRow(
        id=label(row.id),
        record=label(record) if record else (),
        href=f"{place}{quote(row.id, safe='', errors='replace')}/{page}" if page else None,
        prompt=label(row.prompt) if row.prompt else (),
        answer=label(row.error or "failed, no reason recorded") if failed else label(row.answer or "(nothing)"),
        sources=label(row.sources) if row.sources else (),
        review=label("; ".join(reviews)) if reviews else (),
        failed=failed,
        counts=tuple(getattr(row, str(status)) for status in statuses),
        n_targets=row.n_targets,
        probability=row.probability,
        seconds=row.seconds,
    )


def _sentences(rows: Sequence[RunRow]) -> tuple[str, ...]:
    failed = sum(row.status == FAILED for row in rows)
    explained = len(rows) - failed
    clean = sum(row.status != FAILED and count_fine(row) == row.n_targets for row in rows)
    unread = sum(row.unconverged > 0 for row in rows)
    contradicted = sum(row.disagree > 0 or row.contradicted > 0 for row in rows)
    words = fine_words(statuses_of(rows))
    fine = {"agree": "the status “agree”", "are confirmed": "the status “confirmed”"}.get(
        words, "the status “confirmed” or “agree”"
    )
    against = "methods contradict each other" if words == "agree" else "sources are contradicted"
    said = [f"{_records(explained)} explained, {failed} failed."]
    if explained:
        doubt = _that(contradicted, "holds", "hold"), _that(unread, "holds", "hold")
        said.append(
            f"{_that(clean, 'has', 'have')} {fine} for every token. {doubt[0]} a token on which the {against}. "
            f"{doubt[1]} a token whose values cannot be read."
        )
    return tuple(said)


def _that(count: int, one: str, several: str) -> str:
    return f"{_records(count) if count else 'No record'} {one if count < 2 else several}"


def _records(count: int) -> str:
    return f"{count} record{'' if count == 1 else 's'}"
