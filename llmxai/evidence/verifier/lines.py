"""The lines of log.jsonl and content.jsonl.

A line of the log is `{"hash":"<64 hex digits>","record":<record>}`. The hash is SHA-256 over exactly the bytes of
<record>, so nothing has to be parsed or written again to check it: `cut -b 85- | head -c -2 | sha256sum`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

GENESIS = "0" * 64
"""What the first record names as the hash of the record before it."""
RECORD_SCHEMA = "llmxai.record/1"
REMOVALS = ("redaction", "prune")
"""Kinds of records that announce that content and artefacts of earlier ones are gone on purpose."""

_HEAD = re.compile(rb'\{"hash":"[0-9a-f]{64}","record":\{')
_ID = re.compile(rb'"id":"([^"\\]{1,80})"')
_NEEDED = ("schema", "id", "kind", "chain", "content", "digests", "link", "artefacts", "ended")


@dataclass(frozen=True)
class Entry:
    """What checking needs of one record."""

    seq: int
    hash: str
    body: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def content(self) -> str | None:
        """SHA-256 of its line in content.jsonl, or None where it has none."""
        digest: str | None = self.body["content"]["sha256"]
        return digest

    @property
    def removes(self) -> tuple[str, ...]:
        """Ids of the records whose content and artefacts this one says are gone."""
        return tuple(self.body["link"]["records"]) if self.body["kind"] in REMOVALS else ()


class BrokenLogError(ValueError):
    """A line that does not fit, its place, and its id where one can be read."""

    def __init__(self, what: str, seq: int, line: bytes) -> None:
        super().__init__(what)
        self.what, self.seq = what, seq
        found = _ID.search(line)
        self.record = found.group(1).decode(errors="replace") if found else None


def read_line(line: bytes) -> tuple[str, bytes]:
    """The hash and the record's bytes of one line of the log; raises ValueError where they do not belong together."""
    if not (_HEAD.match(line) and line.endswith(b"}}")):
        raise ValueError("is not a line of a log")
    digest, record = line[9:73].decode(), line[84:-1]
    if hashlib.sha256(record).hexdigest() != digest:
        raise ValueError("was changed: its bytes do not have its hash")
    return digest, record


def read_entry(digest: str, record: bytes) -> Entry:
    """Raises ValueError where what checking needs of a record is not there, whoever wrote it."""
    try:
        body = json.loads(record)
        sound = (
            all(isinstance(body[name], str) for name in ("schema", "id", "kind", "ended"))
            and all(isinstance(body["chain"][name], str) for name in ("log", "prev"))
            and type(body["chain"]["seq"]) is int
            and all(isinstance(each[name], str) for each in body["artefacts"] for name in ("path", "sha256"))
            and all(isinstance(text, str) for text in body["digests"].values())
            and isinstance(body["content"]["sha256"], str | None)
            and all(isinstance(id, str) for id in (body["link"] or {"records": []})["records"])
            and (body["link"] is not None or body["kind"] not in REMOVALS)
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"is no record ({type(error).__name__}: {error})") from error
    if not sound:
        raise ValueError("is no record: a field has another type")
    return Entry(body["chain"]["seq"], digest, {name: body[name] for name in _NEEDED})


def stored_texts(line: bytes) -> tuple[str, bytes, dict[str, str]]:
    """Id, salt and texts of one line of content.jsonl; raises ValueError."""
    try:
        stored = json.loads(line)
        salt, texts = bytes.fromhex(stored["salt"]), stored["texts"]
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("a text is none")
        return str(stored["id"]), salt, texts
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"are no stored texts ({type(error).__name__}: {error})") from error


def chained(lines: Iterable[bytes], *, seq: int = 0, prev: str = GENESIS) -> Iterator[tuple[Entry, bytes]]:
    """The records in order with their bytes, from place `seq` on, after the record with hash `prev`.

    Raises BrokenLogError at the first line that is not what was appended there.
    """
    log = None
    for place, line in enumerate(lines, start=seq):
        try:
            digest, record = read_line(line)
            entry = read_entry(digest, record)
            chain = entry.body["chain"]
            log = log or chain["log"]
            if (chain["seq"], chain["prev"], chain["log"]) != (place, prev, log):
                raise ValueError("does not follow the record before it: one was removed, moved or put in")
        except ValueError as error:
            raise BrokenLogError(str(error), place, line) from error
        yield entry, record
        prev = digest


def split_lines(path: Path) -> tuple[Iterator[bytes], int]:
    """The whole lines of a file, without their newlines, and how many bytes follow the last newline."""
    if not path.exists():
        return iter(()), 0
    torn = torn_bytes(path)
    return _lines(path), torn


def torn_bytes(path: Path) -> int:
    """How many bytes follow the last newline."""
    with path.open("rb") as stream:
        end = stream.seek(0, 2)
        size, tail = 0, b""
        while size < end and b"\n" not in tail:
            size = min(end, size + 65536)
            stream.seek(end - size)
            tail = stream.read(size)
    return len(tail) - tail.rfind(b"\n") - 1


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield line[:-1]


def digest_of_text(salt: bytes, text: str) -> str:
    """HMAC-SHA256 of a text in UTF-8 under the record's salt, or under the secret key of a private record."""
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()


Severity = Literal["tampered", "unclear", "note"]
WORDS = ("whole", "tampered", "cannot tell")


@dataclass(frozen=True)
class Finding:
    severity: Severity
    what: str
    seq: int | None = None
    """Place in the log (0-based) of the record that it concerns."""
    record: str | None = None
    """Id of that record, where it could be read."""

    def __str__(self) -> str:
        where = "" if self.seq is None else f"record {self.seq}" + (f" ({self.record})" if self.record else "") + ": "
        return f"{self.severity}: {where}{self.what}"


@dataclass
class Verification:
    """`exit` is 1 with anything tampered, else 2 with anything unclear, else 0."""

    subject: str
    records: int = 0
    signature: str = "unsigned: nobody vouches for it"
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, what: str, seq: int | None = None, record: str | None = None) -> None:
        self.findings.append(Finding(severity, what, seq, record))

    @property
    def exit(self) -> int:
        severities = {finding.severity for finding in self.findings}
        return 1 if "tampered" in severities else 2 if "unclear" in severities else 0

    @property
    def first_bad(self) -> Finding | None:
        """The tampered finding with the lowest record; findings about no single record come last."""
        bad = [finding for finding in self.findings if finding.severity == "tampered"]
        return min(bad, key=lambda f: (f.seq is None, f.seq or 0), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "verdict": WORDS[self.exit],
            "exit": self.exit,
            "records": self.records,
            "signature": self.signature,
            "first_bad": asdict(self.first_bad) if self.first_bad else None,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def to_text(self) -> str:
        head = f"{WORDS[self.exit]}: {self.subject}, {self.records} record{'s' * (self.records != 1)}, {self.signature}"
        bad = self.first_bad
        rest = [str(finding) for finding in self.findings if finding is not bad]
        return "\n".join([head, *([str(bad)] if bad else []), *rest])
