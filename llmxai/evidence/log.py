"""The append-only log of a run: one writer at a time, every record durable before `append` returns.

    with open_log("runs/a/evidence", signer=signing_key()) as log:
        log.append(record, texts={"input": "..."})

`append(folder, record)` does it for a single record.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from filelock import FileLock, Timeout

from llmxai.environment import this_tool
from llmxai.errors import EvidenceError
from llmxai.evidence.files import append_durably, cut_to, last_line, make_durably
from llmxai.evidence.record import Chain, File, Record, RecordKind, new_id
from llmxai.evidence.sealing import SecretKey, checkpoint, plain, sealed, utc_now
from llmxai.evidence.verifier.folder import CHECKPOINTS, CONTENT, LOG, evidence_of
from llmxai.evidence.verifier.lines import (
    GENESIS,
    LONGEST,
    BrokenLogError,
    Entry,
    UnreadableError,
    chained,
    open_file,
    split_lines,
    torn_bytes,
)
from llmxai.evidence.verifier.proof import Frontier, key_id, read_checkpoint

CHECKPOINT_EVERY = 1000
GROUP = 500
WAIT = 120.0
"""Seconds that a writer waits for another writer."""

SKEW = timedelta(seconds=2)
"""By which the clocks of the machines that share a log may differ."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Receipt:
    """The place of an appended record."""

    id: str
    seq: int
    hash: str
    """SHA-256 of the record's bytes."""
    signed: bool
    """Whether checkpoints of this writer are signed."""
    repaired: tuple[str, ...] = ()
    """What an interrupted writer had left behind and was cut off; each cut also has its own record."""


@dataclass
class Known:
    """The facts in a log, collected record by record: a long log is never held in memory."""

    ids: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    """Ids of the records whose texts and files were removed."""
    entered: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each ledger entry, by path, according to the last record that names it."""
    manifest: dict[str, File] = field(default_factory=dict)
    """The files of the last manifest that lists any, by path."""
    records: int = 0
    changing: bool = False
    """Whether a later manifest announced a change of these files and none has listed them since."""

    def digest(self, path: str) -> str | None:
        """SHA-256 of a ledger entry, according to the last record that names it."""
        listed = None if self.changing else self.manifest.get(path)
        return listed.sha256 if listed is not None else self.entered.get(path)

    def add(self, entry: Entry) -> None:
        self.records += 1
        self.ids.add(entry.id)
        self.removed.update(entry.removes)
        files = {file["path"]: File(file["path"], file["bytes"], file["sha256"]) for file in entry.body["artefacts"]}
        if entry.body["announced"]:  # says nothing of the files of a run
            return
        if entry.body["kind"] == RecordKind.MANIFEST:
            self.manifest, self.changing = files or self.manifest, not files
            return
        if (entered := entry.body["entered"]) is not None:
            self.entered[entered["path"]] = entered["sha256"]
            files[entered["path"]] = File(**{name: entered[name] for name in ("path", "bytes", "sha256")})
        for path in files.keys() & self.manifest.keys():  # a later record owns them now
            del self.manifest[path]


class EvidenceLog:
    """A log open for appending, created by `open_log`. Other processes may append to the same log meanwhile."""

    def __init__(self, folder: Path, *, signer: Ed25519PrivateKey | None, checkpoint_every: int) -> None:
        self.folder = folder
        self.signer = signer
        self.checkpoint_every = checkpoint_every
        self.repaired: list[str] = []
        self.log: str | None = None
        self._lock = FileLock(folder / ".lock", timeout=WAIT)
        self._prev, self._offset, self._prefix = GENESIS, 0, hashlib.sha256()
        self._frontier = Frontier()
        self._contents: set[bytes] = set()
        self._latest = ""
        """When the record that ended last had ended."""
        self.known = Known()

    def __len__(self) -> int:
        """Records that this writer has seen, including its own."""
        return self._frontier.size

    def __contains__(self, id: object) -> bool:
        """Whether this writer has seen a record of that id."""
        return id in self.known.ids

    def append(self, record: Record, *, texts: Texts | None = None, private: SecretKey | None = None) -> Receipt:
        """Append one record; when this returns, it is on disk (fsync)."""
        return self.append_many([(record, texts or {})], private=private)[0]

    def append_many(
        self, records: Iterable[tuple[Record, Texts]], *, private: SecretKey | None = None, group: int = GROUP
    ) -> list[Receipt]:
        """Append records in groups with one fsync each (group commit).

        A crash loses at most the last records of the current group; the chain stays intact.
        """
        receipts: list[Receipt] = []
        rest = iter(records)
        while batch := list(islice(rest, group)):
            with self.locked():
                receipts += self._append(batch, private)
                if len(self) - self._covered()[0] >= self.checkpoint_every:
                    self._checkpoint()
        return receipts

    def checkpoint(self) -> None:
        """Sign the Merkle root of everything so far; does nothing if the last checkpoint already says the same."""
        with self.locked():
            self._checkpoint()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Become the only writer: first read and check what others appended, and cut off what a dead writer left."""
        if not self.folder.is_dir():  # the lock would create it
            raise EvidenceError(f"{self.folder}: was removed while the log was open. Nothing more is written.")
        try:
            with self._lock:
                self._require_files()
                self._settle()
                yield
        except Timeout as error:
            raise EvidenceError(
                f"{self.folder}: another process has been writing for {WAIT:.0f} s. Try again."
            ) from error
        except OSError as error:
            raise EvidenceError(f"{self.folder}: the log cannot be written ({error}).") from error

    def _append(self, batch: Sequence[tuple[Record, Texts]], private: SecretKey | None) -> list[Receipt]:
        lines, contents, receipts = [], [], []
        self.log = self.log or str(uuid.uuid4())
        prev, seq = self._prev, len(self)
        for record, texts in batch:
            record, content = sealed(self._timed(record), texts, private=private)
            body = rfc8785.dumps({**plain(record), "chain": plain(Chain(self.log, seq, prev))})
            if max(len(body), len(content or b"")) > LONGEST:
                raise EvidenceError(f"{record.id}: its record or its texts have more than {LONGEST} bytes.")
            prev, seq = hashlib.sha256(body).hexdigest(), seq + 1
            lines.append(b'{"hash":"%b","record":%b}\n' % (prev.encode(), body))
            if content is not None:
                contents.append(content + b"\n")
            receipts.append(Receipt(record.id, seq - 1, prev, self.signer is not None, tuple(self.repaired)))
        if contents:
            append_durably(self.folder / CONTENT, b"".join(contents))
        append_durably(self.folder / LOG, b"".join(lines))
        self._read_on()
        return receipts

    def _timed(self, record: Record) -> Record:
        """The record, with what shows that a clock went backwards among its warnings."""
        now, told = utc_now(), []
        if record.ended < record.started:
            told.append(f"The clock went backwards: it ended at {record.ended}, before it started.")
        if self._latest > now and _is_apart(self._latest, now):
            told.append(f"The clock went backwards: an earlier record ended at {self._latest}; this is {now}.")
        return replace(record, warnings=(*record.warnings, *told)) if told else record

    def _require_files(self) -> None:
        """Raise EvidenceError if anything but a file is where one is to be written."""
        for name in (LOG, CONTENT, CHECKPOINTS):
            with suppress(FileNotFoundError):
                try:
                    open_file(self.folder, name).close()
                except UnreadableError as error:
                    raise EvidenceError(f"{self.folder}: {error}. Nothing is written.") from error

    def _settle(self) -> None:
        """Read the new records, and cut off what a writer left that died while writing."""
        self._read_on()
        covered = self._covered()[0]
        if covered > len(self):
            raise EvidenceError(
                f"{self.folder}: a checkpoint covers {covered} records and {len(self)} are here: the end was cut off. "
                f"Nothing is appended; run `llmxai verify {self.folder.parent}` and continue in another folder (--out)."
            )
        repairs = [self._cut_torn(name) for name in (LOG, CONTENT, CHECKPOINTS)]
        repairs.append(self._cut_orphans())
        told = [repair for repair in repairs if repair]
        if told:
            self.repaired += told
            now = utc_now()
            record = Record(new_id(), RecordKind.REPAIR, "python", now, now, this_tool(), warnings=tuple(told))
            self._append([(record, {})], None)

    def _cut_torn(self, name: str) -> str | None:
        path = self.folder / name
        if not path.exists():
            return None
        with path.open("rb") as stream:
            torn = torn_bytes(stream)
        if not torn:
            return None
        cut_to(path, path.stat().st_size - torn)
        return f"{name}: a torn last line of {torn} bytes was cut off; a writer was interrupted."

    def _cut_orphans(self) -> str | None:
        """Drop texts without a record: texts are written before their records."""
        path = self.folder / CONTENT
        dropped = 0
        while path.exists() and path.stat().st_size:
            line, start = last_line(path)
            if hashlib.sha256(line).digest() in self._contents:
                break
            cut_to(path, start)
            dropped += 1
        return (
            f"{CONTENT}: {dropped} texts without a record were cut off; a writer was interrupted." if dropped else None
        )

    def _read_on(self) -> None:
        """Read what was appended since; raises EvidenceError if it does not follow the known records."""
        path = self.folder / LOG
        size = path.stat().st_size if path.exists() else 0
        if size < self._offset:
            raise EvidenceError(f"{path}: became shorter while it was open; nothing was appended. Run `llmxai verify`.")
        if size == self._offset:
            return
        try:
            with path.open("rb") as stream:
                stream.seek(self._offset)
                for entry, body in chained(self._counted(stream), seq=len(self), prev=self._prev):
                    self.log = self.log or entry.body["chain"]["log"]
                    self._prev = entry.hash
                    self.known.add(entry)
                    self._latest = max(self._latest, entry.body["ended"] if TIME.fullmatch(entry.body["ended"]) else "")
                    self._frontier.add(body)
                    if entry.content:
                        self._contents.add(bytes.fromhex(entry.content))
        except BrokenLogError as broken:
            raise EvidenceError(
                f"{path}: record {broken.seq} {broken.what}. Nothing is appended to a damaged log: leave it "
                f"unchanged, run `llmxai verify {self.folder.parent}`, and continue in another folder (--out)."
            ) from broken

    def _counted(self, stream: Iterable[bytes]) -> Iterator[bytes]:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            self._prefix.update(line)
            self._offset += len(line)
            yield line.removesuffix(b"\n")

    def _covered(self) -> tuple[int, str | None, str | None]:
        """The number of records that the last checkpoint covers, its key, and the SHA-256 of its line."""
        path = self.folder / CHECKPOINTS
        line = last_line(path)[0] if path.exists() else b""
        if not line:
            return 0, None, None
        try:
            point = read_checkpoint(line)
        except ValueError as error:
            raise EvidenceError(
                f"{path}: its last line is {error}. Run `llmxai verify {self.folder.parent}`."
            ) from error
        return point.size, point.keyid, hashlib.sha256(line).hexdigest()

    def _checkpoint(self) -> None:
        size, signed_by, before = self._covered()
        keyid = key_id(self.signer.public_key()) if self.signer else None
        if not len(self) or (size == len(self) and (keyid is None or signed_by == keyid)):
            return
        assert self.log is not None
        line = checkpoint(
            log=self.log,
            size=len(self),
            root=self._frontier.root().hex(),
            head=self._prev,
            prefix=self._prefix.hexdigest(),
            prev=before,
            signer=self.signer,
        )
        append_durably(self.folder / CHECKPOINTS, line + b"\n")


@contextmanager
def open_log(
    folder: Path | str, *, signer: Ed25519PrivateKey | None = None, checkpoint_every: int = CHECKPOINT_EVERY
) -> Iterator[EvidenceLog]:
    """Open the log in `folder` (an `evidence/` folder; created if missing) and sign its root at the end.

    Raises EvidenceError if it cannot be written or is damaged.
    """
    folder = Path(folder)
    try:
        make_durably(folder)
    except OSError as error:
        raise EvidenceError(f"{folder}: the log cannot be written ({error}).") from error
    log = EvidenceLog(folder, signer=signer, checkpoint_every=checkpoint_every)
    with log.locked():
        pass
    try:
        yield log
    finally:
        log.checkpoint()


def append(
    folder: Path | str,
    record: Record,
    *,
    texts: Texts | None = None,
    private: SecretKey | None = None,
    signer: Ed25519PrivateKey | None = None,
) -> Receipt:
    """Append one record to the log in `folder` and sign the new root. For many records, see `open_log`."""
    with open_log(folder, signer=signer) as log:
        return log.append(record, texts=texts, private=private)


LEAST_PREFIX = 8

Log = list[tuple[Entry, bytes]]
"""Each record of a log with its bytes, in order."""


def read_log(run: Path | str, *, manifests: bool = False) -> Log:
    """The records of a run folder (or of its `evidence/`). Raises EvidenceError for a missing or damaged log."""
    place = evidence_of(Path(run))
    try:
        lines, _ = split_lines(place / LOG)
        log = [each for each in chained(lines) if manifests or each[0].body["kind"] != RecordKind.MANIFEST]
    except BrokenLogError as broken:
        raise EvidenceError(f"{place / LOG}: record {broken.seq} {broken.what}. See `llmxai verify {run}`.") from broken
    except UnreadableError as error:
        raise EvidenceError(f"{place}: {error}. See `llmxai verify {run}`.") from error
    if not log:
        raise EvidenceError(f"{place / LOG}: there is no record.")
    return log


def _is_apart(later: str, earlier: str) -> bool:
    try:
        return datetime.fromisoformat(later) - datetime.fromisoformat(earlier) > SKEW
    except ValueError:
        return False


def read_known(run: Path | str) -> Known:
    """The facts in a run's log, up to the first damaged record; empty if there is no log."""
    known = Known()
    with suppress(BrokenLogError, UnreadableError):
        lines, _ = split_lines(evidence_of(Path(run)) / LOG)
        for entry, _ in chained(lines):
            known.add(entry)
    return known


def removed_ids(log: Log) -> frozenset[str]:
    """The ids of the records whose texts and files were removed, according to later records."""
    return frozenset(record for entry, _ in log for record in entry.removes)


def find(log: Log, id: str) -> tuple[Entry, bytes]:
    """The record with this id, or with the only id that starts with it. Raises EvidenceError."""
    found = [each for each in log if each[0].id == id]
    if not found and len(id) >= LEAST_PREFIX:
        found = [each for each in log if each[0].id.startswith(id)]
    if len(found) != 1:
        what = "no record has" if not found else f"{len(found)} records have"
        some = ", ".join(entry.id for entry, _ in (found or log)[:5])
        raise EvidenceError(f"{id!r}: {what} an id that starts with it (for example {some}). Give the full id.")
    return found[0]


def find_run(id: str, below: Path | str = "runs") -> Path:
    """The run folder below `below` whose log holds the record. Raises EvidenceError if none or several do."""
    logs = sorted(Path(below).glob(f"**/{LOG}"))
    runs = [path.parents[1] for path in logs if f'"id":"{id}'.encode() in path.read_bytes()]
    if len(runs) != 1:
        where = "no log" if not runs else f"{len(runs)} logs ({', '.join(map(str, runs))})"
        raise EvidenceError(f"{id!r}: {where} below {below} holds such a record. Name the run: --run FOLDER.")
    return runs[0]
