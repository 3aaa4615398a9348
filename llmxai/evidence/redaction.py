"""Remove texts and files but keep the chain intact: on request (redact), or because they are old (prune).

First a record is appended that says what is removed, and why; only then is anything removed. If that is interrupted,
the next removal completes it. The records themselves stay: they hold digests and no text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.environment import this_tool
from llmxai.evidence.files import replace_durably
from llmxai.evidence.log import EvidenceLog, Log, Receipt, append, find, open_log, read_log, removed_ids
from llmxai.evidence.record import Link, Record, RecordKind, new_id
from llmxai.evidence.sealing import SecretKey, utc_now
from llmxai.evidence.verifier.folder import CONTENT, evidence_of
from llmxai.evidence.verifier.lines import Entry


def redact(
    run: Path | str, id: str, *, reason: str, by: str | None = None, signer: Ed25519PrivateKey | None = None
) -> Receipt:
    """Remove the texts and files of one record; its digests stay, and a later record gives the reason.

    Raises EvidenceError for an unknown record or a damaged log.
    """
    place = evidence_of(Path(run))
    entry, _ = find(read_log(run), id)
    return _remove(place, [entry], kind=RecordKind.REDACTION, reason=reason, by=by, signer=signer)


def prune(
    run: Path | str, *, older_than: timedelta, by: str | None = None, signer: Ed25519PrivateKey | None = None
) -> Receipt | None:
    """Remove the texts and files of every record that ended longer ago than `older_than`; None if there are none."""
    place, log = evidence_of(Path(run)), read_log(run)
    before = datetime.now(UTC) - older_than
    gone = removed_ids(log)
    old = [
        entry
        for entry, record in log
        if _ended(entry) < before and entry.id not in gone and (entry.content or entry.body["artefacts"])
    ]
    if not old:
        return None
    reason = f"retention: ended before {before.isoformat(timespec='seconds')}"
    return _remove(place, old, kind=RecordKind.PRUNE, reason=reason, by=by, signer=signer)


def withdraw(log: EvidenceLog, folders: Sequence[Path], *, reason: str) -> Receipt | None:
    """Remove the texts and files of the records whose files lie in `folders`, before other results replace them.

    None if no record names any.
    """
    base = log.folder.parent.resolve()
    prefixes = tuple(folder.resolve().relative_to(base).as_posix() + "/" for folder in folders)
    entries = [
        entry
        for entry, _ in read_log(base)
        if any(each["path"].startswith(prefixes) for each in entry.body["artefacts"])
    ]
    if not entries:
        return None
    return _remove(log.folder, entries, kind=RecordKind.PRUNE, reason=reason, by=None, signer=log.signer)


def _ended(entry: Entry) -> datetime:
    return datetime.fromisoformat(str(entry.body["ended"]))


def _remove(
    place: Path,
    entries: Sequence[Entry],
    *,
    kind: RecordKind,
    reason: str,
    by: str | None,
    signer: Ed25519PrivateKey | None,
) -> Receipt:
    ids = tuple(entry.id for entry in entries)
    paths = tuple(sorted({artefact["path"] for entry in entries for artefact in entry.body["artefacts"]}))
    now = utc_now()
    link = Link(records=ids, by=by, reason=reason, paths=paths)
    record = Record(id=new_id(), kind=kind, entry="python", started=now, ended=now, tool=this_tool(), link=link)
    with open_log(place, signer=signer) as log:
        receipt = log.append(record)
        with log.locked():
            now_in_it = read_log(place)
            gone = removed_ids(now_in_it)
            _drop_texts(
                place / CONTENT, {entry.content for entry, _ in now_in_it if entry.content and entry.id in gone}
            )
            _drop_files(place.parent, now_in_it, gone)
    return receipt


def _drop_texts(path: Path, digests: Collection[str]) -> None:
    if not digests or not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if hashlib.sha256(line.removesuffix(b"\n")).hexdigest() not in digests]
    if len(kept) < len(lines):
        replace_durably(path, b"".join(kept))


def _drop_files(base: Path, log: Log, ids: Collection[str]) -> None:
    """Remove the files of these records, except those that a later record has replaced."""
    last = {artefact["path"]: entry.id for entry, _ in log for artefact in entry.body["artefacts"] or ()}
    for path, owner in last.items():
        if owner in ids:
            (base / path).unlink(missing_ok=True)


def review(
    run: Path | str,
    id: str,
    *,
    decision: str,
    by: str,
    note: str | None = None,
    private: SecretKey | None = None,
    signer: Ed25519PrivateKey | None = None,
) -> Receipt:
    """Append a decision about a record. `by` is a pseudonym and stays in the record; the note is a text that can be
    redacted. Raises EvidenceError for an unknown record or a damaged log.
    """
    entry, _ = find(read_log(run), id)
    now = utc_now()
    record = Record(
        id=new_id(),
        kind=RecordKind.REVIEW,
        entry="python",
        started=now,
        ended=now,
        tool=this_tool(),
        link=Link(records=(entry.id,), by=by, decision=decision),
    )
    texts = {} if note is None else {"note": note}
    return append(evidence_of(Path(run)), record, texts=texts, private=private, signer=signer)
