"""Find records again: in one log, or among the runs below a folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from llmxai.errors import EvidenceError
from llmxai.evidence.verifier.folder import LOG, evidence_of
from llmxai.evidence.verifier.lines import BrokenLogError, Entry, chained, split_lines

LEAST_PREFIX = 8

Log = list[tuple[Entry, bytes]]
"""Each record of a log with its bytes, in order."""


def read_log(run: Path | str) -> Log:
    """The records of a run folder (or of its `evidence/`). Raises EvidenceError for none or a broken one."""
    place = evidence_of(Path(run))
    lines, _ = split_lines(place / LOG)
    try:
        log = list(chained(lines))
    except BrokenLogError as broken:
        raise EvidenceError(f"{place / LOG}: record {broken.seq} {broken.what}. See `llmxai verify {run}`.") from broken
    if not log:
        raise EvidenceError(f"{place / LOG}: there is no record.")
    return log


def read_ids(run: Path | str) -> frozenset[str]:
    """The ids of a run's records, as far as its log is whole; none where there is no log."""
    ids = set()
    lines, _ = split_lines(evidence_of(Path(run)) / LOG)
    with suppress(BrokenLogError):
        for entry, _ in chained(lines):
            ids.add(entry.id)
    return frozenset(ids)


def removed_ids(log: Log) -> frozenset[str]:
    """The ids of the records whose texts and files a later record says are gone."""
    return frozenset(record for entry, _ in log for record in entry.removes)


def find(log: Log, id: str) -> tuple[Entry, bytes]:
    """The record with this id, or with the only id that begins so. Raises EvidenceError."""
    found = [each for each in log if each[0].id == id]
    if not found and len(id) >= LEAST_PREFIX:
        found = [each for each in log if each[0].id.startswith(id)]
    if len(found) != 1:
        what = "no record has" if not found else f"{len(found)} records have"
        some = ", ".join(entry.id for entry, _ in (found or log)[:5])
        raise EvidenceError(f"{id!r}: {what} an id that begins so (for example {some}). Give the whole id.")
    return found[0]


def find_run(id: str, below: Path | str = "runs") -> Path:
    """The run folder below `below` whose log holds the record. Raises EvidenceError where none or several do."""
    logs = sorted(Path(below).glob(f"**/{LOG}"))
    runs = [path.parents[1] for path in logs if f'"id":"{id}'.encode() in path.read_bytes()]
    if len(runs) != 1:
        where = "no log" if not runs else f"{len(runs)} logs ({', '.join(map(str, runs))})"
        raise EvidenceError(f"{id!r}: {where} below {below} holds such a record. Name the run: --run FOLDER.")
    return runs[0]
