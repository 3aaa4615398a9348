"""Records about earlier records: removed texts and files, files that a run derives, decisions of reviewers.

Texts and files are removed on request (redact) or because they are old (prune), and the chain stays intact. First a
record is appended that says what is removed, and why; only then is anything removed. If that is interrupted, the next
removal completes it. The records themselves stay: they hold digests and no text.

Files that a run derives from its records (tables, pages) are listed by a manifest. Before they change, one without
files replaces it, so the log never makes a false claim, whatever interrupts the change.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.environment import this_tool
from llmxai.errors import EvidenceError
from llmxai.evidence.files import describe, last_line, replace_durably, sweep
from llmxai.evidence.log import EvidenceLog, Log, Receipt, append, find, open_log, read_known, read_log, removed_ids
from llmxai.evidence.record import File, Link, Record, RecordKind, new_id
from llmxai.evidence.sealing import SecretKey, utc_now
from llmxai.evidence.verifier.folder import CHECKPOINTS, CONTENT, EVIDENCE, LOG, evidence_of
from llmxai.evidence.verifier.lines import Entry, UnreadableError, digest_file, open_file
from llmxai.evidence.verifier.proof import read_checkpoint

REVIEW_SCHEMA = "llmxai.review/1"
STRICT = {"extra": "forbid"}
"""For pydantic: a key that is not known is an error."""


def redact(
    run: Path | str, id: str, *, reason: str, by: str | None = None, signer: Ed25519PrivateKey | None = None
) -> Receipt:
    """Remove the texts and files of one record; its digests stay, and a later record gives the reason.

    Raises EvidenceError for an unknown record or a damaged log.
    """
    place = evidence_of(Path(run))
    entry, _ = find(read_log(run, manifests=True), id)
    if entry.body["kind"] == RecordKind.MANIFEST:
        raise EvidenceError(f"{entry.id}: is a manifest, which holds no text. Redact the record of the row.")
    return _remove(place, [entry], kind=RecordKind.REDACTION, reason=reason, by=by, signer=signer)


def prune(
    run: Path | str, *, older_than: timedelta, by: str | None = None, signer: Ed25519PrivateKey | None = None
) -> Receipt | None:
    """Remove the texts and files of every record that ended longer ago than `older_than`; None if there are none."""
    place, log = evidence_of(Path(run)), read_log(run)
    before = datetime.now(UTC) - older_than
    gone = removed_ids(log)
    old = [
        entry for entry, record in log if _ended(entry) < before and entry.id not in gone and _holds_something(entry)
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
        if _holds_something(entry) and any(each["path"].startswith(prefixes) for each in entry.body["artefacts"])
    ]
    if not entries:
        return None
    return _remove(log.folder, entries, kind=RecordKind.PRUNE, reason=reason, by=None, signer=log.signer)


def _holds_something(entry: Entry) -> bool:
    """Whether it has its own texts or files; those of a manifest belong to the run."""
    return entry.body["kind"] != RecordKind.MANIFEST and bool(entry.content or entry.body["artefacts"])


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
    sweep(place.parent)
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


@dataclass(frozen=True)
class Mark:
    """A reviewer's mark on the answer or on a word of it."""

    __pydantic_config__: ClassVar = STRICT

    tokens: tuple[int, int] | None
    """Half-open range of the word; None for the answer as a whole."""
    text: str
    mark: Literal["agree", "question", "comment"]
    comment: str


@dataclass(frozen=True)
class Review:
    """A review.json, as the page of an explanation saves it."""

    __pydantic_config__: ClassVar = STRICT

    record: str
    explanation_sha256: str
    """Of the explanation.json that the page shows."""
    page: str
    """Its title."""
    by: str
    saved: str
    marks: tuple[Mark, ...]

    @property
    def decision(self) -> str:
        """The marks in short: that on the answer, and how many words have which."""
        whole = [mark.mark for mark in self.marks if mark.tokens is None]
        words = Counter(mark.mark for mark in self.marks if mark.tokens is not None)
        done = {"agree": "agreed", "question": "questioned", "comment": "commented"}
        counted = [f"{n} word{'' if n == 1 else 's'} {done[kind]}" for kind, n in sorted(words.items())]
        return "; ".join([*whole, *counted])


LARGEST_REVIEW = 4_000_000
"""Bytes of a review.json."""


def read_review(path: Path | str) -> Review:
    """Raises EvidenceError for a file that is no review.json of a page with a record."""
    from pydantic import TypeAdapter, ValidationError

    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_REVIEW:
            raise ValueError(f"it has more than {LARGEST_REVIEW} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvidenceError(f"{path}: no review can be read from it ({error}).") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != REVIEW_SCHEMA:
        raise EvidenceError(
            f"{path}: is no review ({ascii(schema)[:80]}; expected {REVIEW_SCHEMA!r}). Save one on the page of an "
            f"explanation: “Your review”, then “Save review.json”."
        )
    if not values.get("record") or not values.get("explanation_sha256"):
        raise EvidenceError(
            f"{path}: names no record, since its page was made without an evidence log. Explain the answer again with "
            f"one (llmxai explain keeps one by default), or sign a record off by its id: llmxai review sign."
        )
    try:
        fields = {name: value for name, value in values.items() if name != "schema"}
        review = TypeAdapter(Review).validate_python(fields)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise EvidenceError(f"{path}: {where} is {ascii(fault['input'])[:80]}: {fault['msg']}.") from error
    if not review.marks or not review.by.strip():
        missing = "no marks" if not review.marks else "no reviewer"
        raise EvidenceError(f"{path}: holds {missing}. Add them on the page and save the file again.")
    return review


def import_review(run: Path | str, review: Review, *, signer: Ed25519PrivateKey | None = None) -> Receipt:
    """Append a reviewer's marks to the log of `run`, as a decision about the record that they name.

    The marks are a text (its note), which can be redacted; the decision in short and the pseudonym stay. Raises
    EvidenceError for an unknown record, one of another explanation, or marks that are in the log already.
    """
    log = read_log(run)
    entry, _ = find(log, review.record)
    digests = {each["path"].rpartition("/")[2]: each["sha256"] for each in entry.body["artefacts"]}
    if digests.get("explanation.json") != review.explanation_sha256:
        raise EvidenceError(
            f"{entry.id}: its explanation is not the one that was reviewed (SHA-256 "
            f"{review.explanation_sha256[:12]}…). Open the page of this record, and review that."
        )
    reason = f"review.json, saved {review.saved}"
    for other, _ in log:
        link = other.body["link"]
        if other.body["kind"] == RecordKind.REVIEW and entry.id in link["records"] and link["reason"] == reason:
            raise EvidenceError(f"{other.id}: this review was entered before. Nothing was written.")
    now = utc_now()
    link = Link(records=(entry.id,), by=review.by.strip(), decision=review.decision, reason=reason)
    record = Record(new_id(), RecordKind.REVIEW, "cli", now, now, this_tool(), link=link)
    note = json.dumps([asdict(mark) for mark in review.marks], ensure_ascii=False)
    return append(evidence_of(Path(run)), record, texts={"note": note}, signer=signer)


RUN_FILES = (
    *("manifest.json", "rows.parquet", "measures.parquet", "index.html", "index-data/*.html", "index.pdf"),
    *("evaluation.html", "tables/*", "plots/*"),
    *("report.pdf", "report.rebuilt.html", "report.rebuilt.pdf"),
    *("records/*/report.pdf", "records/*/report.rebuilt.html", "records/*/report.rebuilt.pdf"),
)
"""Files that `llmxai run` and `llmxai report` write, besides those that the record of a row or an explanation names
(its page and data, and its entry in the ledger)."""


class Vouching:
    """Keeps the manifest of the folder of an open log: `changing` before files change, `close` when they have changed.

    The manifest lists the files that were written in between, and repeats the previous manifest for all others: it
    never covers files that another program put there or changed.
    """

    def __init__(self, log: EvidenceLog) -> None:
        self.log, self.base = log, log.folder.parent
        self._before: dict[str, tuple[int, int, int]] | None = None
        self._claims: dict[str, File] = {}

    def changing(self) -> None:
        """Announce that files are about to change; does nothing if already announced."""
        if self._before is not None:
            return
        with self.log.locked():
            self._claims, interrupted = dict(self.log.known.manifest), self.log.known.changing
        spoilt = dict(self._spoilt())
        if interrupted:  # files that a killed process was changing are no longer covered
            self._claims = {path: claim for path, claim in self._claims.items() if path not in spoilt}
        self._before = {path: state for path in self._paths() if (state := _state(self.base / path)) is not None}
        if self._claims and not interrupted:
            self._append((), warnings=[f"{path} {why}" for path, why in spoilt.items()])

    def close(self, *, also: Collection[str] = ()) -> None:
        """List the files of the run. `also`: paths that were written and are not among RUN_FILES."""
        if self._before is None:
            return
        files = []
        for path in sorted({*self._paths(), *also, *self._claims}):
            state, before = _state(self.base / path), self._before.get(path)
            if state is not None and (state != before or path in also):
                files.append(describe(self.base / path, base=self.base))
            elif path in self._claims and (state is not None or before is None):  # else it was removed in the meantime
                files.append(self._claims[path])
        self._before = None
        if files:
            self._append(files)

    def _paths(self) -> list[str]:
        found = [path for pattern in RUN_FILES for path in self.base.glob(pattern)]
        return [*(path.relative_to(self.base).as_posix() for path in found), *self._claims]

    def _spoilt(self) -> Iterator[tuple[str, str]]:
        for path, claim in self._claims.items():
            try:
                if digest_file(self.base, path, size=claim.bytes) != claim.sha256:
                    yield path, "was changed after the last manifest"
            except FileNotFoundError:
                yield path, "was removed after the last manifest"
            except UnreadableError as error:
                yield path, f"cannot be read any more ({error})"

    def _append(self, files: Sequence[File], *, warnings: Sequence[str] = ()) -> None:
        now = utc_now()
        record = Record(new_id(), RecordKind.MANIFEST, "python", now, now, this_tool())
        self.log.append(replace(record, artefacts=tuple(files), warnings=tuple(warnings)))


def _state(path: Path) -> tuple[int, int, int] | None:
    """Identifies one version of a file; None if it is not a file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size) if stat.S_ISREG(found.st_mode) else None


@contextmanager
def vouched(
    folder: Path | str, *, signer: Ed25519PrivateKey | None = None, also: Collection[str] = ()
) -> Iterator[Callable[[], None]]:
    """Yields a function to call before a file of the folder changes; if it was called, writes a manifest at the end.

    `folder`: of a run, of one of its records or of an explanation; nothing is written if it has no log, or the log is
    damaged, which `llmxai verify` reports. `also`: paths, known at the end, that were written and are not among
    RUN_FILES.
    """
    place = _with_log(folder)
    vouching: Vouching | None = None
    with ExitStack() as stack:

        def changing() -> None:
            nonlocal vouching
            if vouching is None and place is not None:
                with suppress(EvidenceError):
                    vouching = Vouching(stack.enter_context(open_log(place / EVIDENCE, signer=signer)))
            if vouching is not None:
                vouching.changing()

        try:
            yield changing
        finally:
            if vouching is not None:
                vouching.close(also=also)


def _with_log(folder: Path | str) -> Path | None:
    """The folder itself or one of the two above it that holds the log."""
    places = (Path(folder), *Path(folder).absolute().parents[:2])
    return next((each for each in places if (each / EVIDENCE / LOG).is_file()), None)


def clean_up(folder: Path | str) -> bool:
    """Whether the command that wrote to the folder's log last was killed; then what it left half-written is removed.

    It had announced changes and listed no files since, or its last records have no checkpoint. Files that it had
    written are then vouched for by no one, until they are written again.
    """
    place = _with_log(folder)
    if place is None:
        return False
    known = read_known(place)
    try:
        open_file(place / EVIDENCE, CHECKPOINTS).close()  # or it may be a pipe, which never ends
        line = last_line(place / EVIDENCE / CHECKPOINTS)[0]
        covered = read_checkpoint(line).size if line else 0
    except (OSError, ValueError):
        covered = 0
    if interrupted := known.changing or covered < known.records:
        sweep(place)
    return interrupted
