"""What every check reads: files, JSON, and the lines of log.jsonl and content.jsonl; and what it says of them.

A folder or a bundle may have been made to harm its reader. All of it is read here: links are never followed,
only files are opened, and nothing is read that is larger or deeper than what llmxai writes.

A line of the log is `{"hash":"<64 hex digits>","record":<record>}`. The hash is SHA-256 over exactly the bytes of
<record>, so nothing has to be parsed or written again to check it: `cut -b 85- | head -c -2 | sha256sum`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

GENESIS = "0" * 64
"""What the first record names as the hash of the record before it."""
RECORD_SCHEMAS = ("llmxai.record/1", "llmxai.record/2")
MANIFEST = "manifest"
"""The kind of record that lists the files of a run that no other record names; each replaces the one before it."""
REMOVALS = ("redaction", "prune")
"""Kinds of records that announce that content and artefacts of earlier ones are gone on purpose."""

LONGEST = 64 * 2**20
"""Largest line or JSON document, in bytes."""
LARGEST = 4 * 2**30
"""Largest file that a record may name, in bytes."""
DIGITS = 25
"""Of a whole number: RFC 8785 writes up to 10^21 without an exponent."""
CHUNK = 2**20

_HEAD = re.compile(rb'\{"hash":"[0-9a-f]{64}","record":\{')
_ID = re.compile(rb'"id":"([^"\\]{1,80})"')
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEEDED = ("schema", "id", "kind", "chain", "content", "digests", "link", "artefacts", "ended")


class UnreadableError(ValueError):
    """Not something that llmxai writes, so it does not show whether anything was changed."""


JUNCTION = 0xA0000003
"""The mark of a junction (a link between folders) on Windows."""
LINK = "a link, and links are not followed"
KINDS = (
    *((stat.S_ISLNK, LINK), (stat.S_ISDIR, "a folder"), (stat.S_ISREG, "a file")),
    *((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device")),
)
OPENING = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_file(base: Path, name: str) -> BufferedReader:
    """Open the file with this name (parts joined by /) below the folder `base`, which may be a link itself.

    Raises FileNotFoundError, and UnreadableError for a name that leads out of the folder, and for anything that is not
    a file or is behind a link.
    """
    parts = parts_of(name)
    try:
        for n in range(1, len(parts)):
            _require(base.joinpath(*parts[:n]), stat.S_ISDIR, "a folder")
        path = base.joinpath(*parts)
        _require(path, stat.S_ISREG, "a file")
        stream = os.fdopen(os.open(path, OPENING), "rb")
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
            raise UnreadableError(f"{name} is no file")
    except FileNotFoundError:
        raise
    except UnreadableError as error:
        raise UnreadableError(f"{name} cannot be read ({error})") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnreadableError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return stream


def parts_of(name: str) -> list[str]:
    """The parts of a relative path; raises UnreadableError for one that leads out of its folder."""
    parts = name.split("/")
    windows = os.name == "nt" and any(character in name for character in ':\\"<>|?*')
    if windows or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise UnreadableError(f"{name} names a file outside the folder")
    return parts


def _require(path: Path, is_kind: Any, wanted: str) -> None:
    found = os.lstat(path)
    junction = getattr(found, "st_reparse_tag", 0) == JUNCTION
    if junction or not is_kind(found.st_mode):
        kind = LINK if junction else next((name for is_it, name in KINDS if is_it(found.st_mode)), "no file")
        raise UnreadableError(f"{path.name} is {kind}; expected {wanted}")


def read_file(base: Path, name: str, *, most: int = LONGEST) -> bytes:
    """The contents of a file of at most `most` bytes. Raises what `open_file` raises."""
    with open_file(base, name) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise UnreadableError(f"{name} is larger than {most} bytes")
    return data


def digest_file(base: Path, name: str, *, size: int) -> str | None:
    """SHA-256 of a file of exactly that size; None if its size differs. Raises what `open_file` raises."""
    with open_file(base, name) as stream:
        if os.fstat(stream.fileno()).st_size != size:
            return None
        if size > LARGEST:
            raise UnreadableError(f"{name} is larger than {LARGEST} bytes")
        return hashlib.file_digest(stream, "sha256").hexdigest()


def parse_json(data: bytes) -> Any:
    """JSON of the kind that llmxai writes.

    Raises UnreadableError if it is too long or too deep, or contains an invalid number (1e999, NaN) or a repeated key,
    and another ValueError for anything that is not JSON.
    """
    if len(data) > LONGEST:
        raise UnreadableError(f"is longer than {LONGEST} bytes")
    try:
        return json.loads(
            data.decode(),
            parse_float=_finite,
            parse_int=_whole,
            parse_constant=_finite,
            object_pairs_hook=_without_twins,
        )
    except RecursionError:
        raise UnreadableError("is nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise UnreadableError(f"holds {text[:DIGITS]}, which is no number")
    return number


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise UnreadableError(f"holds a whole number of {len(text)} digits")
    return int(text)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableError("holds a key twice")
    return found


def split_lines(path: Path) -> tuple[Iterator[bytes], int]:
    """The whole lines of a file, without their newlines, and how many bytes follow the last newline.

    Raises UnreadableError if it is something other than a file and, while reading the lines, if one is too long.
    """
    try:
        with open_file(path.parent, path.name) as stream:
            torn, end = torn_bytes(stream), stream.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return iter(()), 0
    return _lines(path, end - torn), torn


def torn_bytes(stream: BufferedReader) -> int:
    """How many bytes follow the last newline."""
    end = place = stream.seek(0, os.SEEK_END)
    while place:
        start = max(0, place - CHUNK)
        stream.seek(start)
        found = stream.read(place - start).rfind(b"\n")
        if found >= 0:
            return end - start - found - 1
        place = start
    return end


def _lines(path: Path, end: int) -> Iterator[bytes]:
    with open_file(path.parent, path.name) as stream:
        while end > 0:
            line = stream.readline(min(LONGEST + 1, end))
            if len(line) > LONGEST:
                raise UnreadableError(f"{path.name}: a line is longer than {LONGEST} bytes")
            if not line.endswith(b"\n"):
                return
            end -= len(line)
            yield line[:-1]


@dataclass(frozen=True)
class Entry:
    """The parts of one record that checking needs."""

    seq: int
    hash: str
    body: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def content(self) -> str | None:
        """SHA-256 of its line in content.jsonl, or None."""
        digest: str | None = self.body["content"]["sha256"]
        return digest

    @property
    def removes(self) -> tuple[str, ...]:
        """Ids of the records whose content and artefacts were removed, according to this one."""
        return tuple(self.body["link"]["records"]) if self.body["kind"] in REMOVALS else ()


class BrokenLogError(ValueError):
    """A line that does not fit, its place, and its id if readable."""

    def __init__(self, why: ValueError, seq: int, line: bytes) -> None:
        super().__init__(str(why))
        self.what, self.seq = str(why), seq
        self.severity: Severity = "unclear" if isinstance(why, UnreadableError) else "tampered"
        found = _ID.search(line)
        self.record = found.group(1).decode(errors="replace") if found else None


def read_line(line: bytes) -> tuple[str, bytes]:
    """The hash and the record's bytes of one line of the log. Raises ValueError if they do not match."""
    if not (_HEAD.match(line) and line.endswith(b"}}")):
        raise ValueError("is not a line of a log")
    digest, record = line[9:73].decode(), line[84:-1]
    if hashlib.sha256(record).hexdigest() != digest:
        raise ValueError("was changed: its bytes do not have its hash")
    return digest, record


def read_entry(digest: str, record: bytes) -> Entry:
    """Raises ValueError if a part of a record that checking needs is missing."""
    try:
        body = parse_json(record)
        paths = [artefact["path"] for artefact in body["artefacts"]]
        sound = (
            all(isinstance(body[name], str) for name in ("schema", "id", "kind", "ended"))
            and isinstance(body["artefacts"], list)
            and all(isinstance(body["chain"][name], str) for name in ("log", "prev"))
            and type(body["chain"]["seq"]) is int
            and all(_is_file(artefact) for artefact in body["artefacts"])
            and len(set(paths)) == len(paths)
            and (body.get("entered") is None or _is_file(body["entered"]))
            and isinstance(body.get("announced", []), list)
            and all(_is_file(file) for file in body.get("announced", []))
            and not (body.get("announced") and (body["artefacts"] or body["kind"] != MANIFEST))
            and all(isinstance(text, str) for text in body["digests"].values())
            and (body["content"]["sha256"] is None or _is_digest(body["content"]["sha256"]))
            and (_is_link(body["link"]) or (body["link"] is None and body["kind"] not in REMOVALS))
        )
    except UnreadableError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"is no record ({type(error).__name__}: {error})") from error
    if not sound:
        raise ValueError("is no record: a field has another type")
    later = {"entered": body.get("entered"), "announced": body.get("announced", [])}  # earlier records have none
    return Entry(body["chain"]["seq"], digest, {name: body[name] for name in _NEEDED} | later)


def _is_file(told: Any) -> bool:
    return isinstance(told["path"], str) and type(told["bytes"]) is int and _is_digest(told["sha256"])


def _is_link(told: Any) -> bool:
    return (
        isinstance(told, dict)
        and isinstance(told["records"], list)
        and all(isinstance(id, str) for id in told["records"])
    )


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def stored_texts(line: bytes) -> tuple[str, bytes, dict[str, str]]:
    """Id, salt and texts of one line of content.jsonl; raises ValueError."""
    try:
        stored = parse_json(line)
        salt, texts = bytes.fromhex(stored["salt"]), stored["texts"]
        if not all(isinstance(text, str) for text in texts.values()):
            raise ValueError("a text is none")
        return str(stored["id"]), salt, texts
    except UnreadableError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"are no stored texts ({type(error).__name__}: {error})") from error


def chained(lines: Iterable[bytes], *, seq: int = 0, prev: str = GENESIS) -> Iterator[tuple[Entry, bytes]]:
    """The records in order with their bytes, from place `seq` on, after the record with hash `prev`.

    Raises BrokenLogError at the first line that is not the one appended there.
    """
    rest, log, place = iter(lines), None, seq
    while True:
        line: bytes | None = None
        try:
            if (line := next(rest, None)) is None:
                return
            digest, record = read_line(line)
            entry = read_entry(digest, record)
            chain = entry.body["chain"]
            log = log or chain["log"]
            if (chain["seq"], chain["prev"], chain["log"]) != (place, prev, log):
                raise ValueError("does not follow the record before it: one was removed, moved or put in")
        except ValueError as error:
            raise BrokenLogError(error, place, line or b"") from error
        yield entry, record
        prev, place = digest, place + 1


def digest_of_text(salt: bytes, text: str) -> str:
    """HMAC-SHA256 of a text in UTF-8 under the record's salt, or under the secret key of a private record."""
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()


Severity = Literal["tampered", "unclear", "note"]
WORDS = ("whole", "tampered", "cannot tell")
LISTED = 20
"""Most files that no record covers that the text lists by name."""
SHOWN = 300
"""Longest sentence that is shown, in characters: its quotes are not ours."""


def printable(text: str) -> str:
    """`text` on one line, without control characters: quoted names and ids may try to control the terminal."""
    clipped = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clipped)


@dataclass(frozen=True)
class Finding:
    severity: Severity
    what: str
    seq: int | None = None
    """Place in the log (0-based) of the record concerned."""
    record: str | None = None
    """Id of that record, if it could be read."""

    def __str__(self) -> str:
        where = "" if self.seq is None else f"record {self.seq}" + (f" ({self.record})" if self.record else "") + ": "
        return f"{self.severity}: {where}{self.what}"


@dataclass
class Verification:
    """`exit` is 1 with anything tampered, else 2 with anything unclear, else 0."""

    subject: str
    records: int = 0
    signature: str = "unsigned: no key vouches for it"
    findings: list[Finding] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    """Files of the folder that no record covers; nothing is known about them."""

    def add(self, severity: Severity, what: str, seq: int | None = None, record: str | None = None) -> None:
        self.findings.append(Finding(severity, printable(what), seq, None if record is None else printable(record)))

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
            "subject": printable(self.subject),
            "verdict": WORDS[self.exit],
            "exit": self.exit,
            "records": self.records,
            "signature": printable(self.signature),
            "first_bad": asdict(self.first_bad) if self.first_bad else None,
            "findings": [asdict(finding) for finding in self.findings],
            "uncovered": [printable(path) for path in self.uncovered],
        }

    def to_text(self) -> str:
        told = f"{self.records} record{'s' * (self.records != 1)}, {printable(self.signature)}"
        if n := len(self.uncovered):
            told += f"; {n} file{'s' * (n != 1)} in the folder {'are' if n != 1 else 'is'} not covered"
        bad = self.first_bad
        lines = [*([str(bad)] if bad else []), *(str(finding) for finding in self.findings if finding is not bad)]
        lines += [f"not covered: {printable(path)}" for path in self.uncovered[:LISTED]]
        lines += [f"not covered: {n - LISTED} more; --json lists them"] if n > LISTED else []
        return "\n".join([f"{WORDS[self.exit]}: {printable(self.subject)}, {told}", *lines])
