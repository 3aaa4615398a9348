"""Check a bundle of one record (.zip) for a third party, or a proof that one log grew from another.

A bundle is closed: it has these members in this order, each once and no other, Stored or Deflated, with nothing before,
between or after them, so that every tool that unpacks it shows the same files.

    README.txt      the text below
    record.json     the record: the subject of the proof, which lists everything else
    content.json    its texts; missing if they were private or removed
    artefacts/PATH  the files that it names, in its order; missing if they were removed or replaced
    linked/ID.json  later records that refer to it, in the order of the log
    proof.json      the places of these records in the log, and the Merkle paths to the root (RFC 6962)
    checkpoint.json the root
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmxai.evidence.verifier.lines import (
    CHUNK,
    LONGEST,
    Entry,
    UnreadableError,
    Verification,
    digest_of_text,
    open_file,
    parse_json,
    parts_of,
    read_entry,
    stored_texts,
)
from llmxai.evidence.verifier.proof import Checkpoint, compact, is_consistent, is_included, key_id, read_checkpoint

BUNDLE_SCHEMA = "llmxai.bundle/2"
OPEN_SCHEMA = "llmxai.bundle/1"
"""The schema of open bundles, whose visible files need not be the subject of the proof."""
CONSISTENCY_SCHEMA = "llmxai.consistency/1"
README = """One record of an llmxai evidence log.

record.json      the record, byte for byte as it was hashed: sha256sum record.json
content.json     its texts and the salt of their digests (not there where they were private or taken away)
artefacts/       the files that the record names, with their SHA-256 in it
linked/          later records that refer to it: reviews, redactions
proof.json       where these records stand in the log, and the Merkle paths to the root (RFC 6962)
checkpoint.json  the root, as an in-toto Statement in a DSSE envelope

Check it: llmxai verify BUNDLE.zip --pubkey KEY.pub, or see docs/verify.md of llmxai for other tools. Take the public
key from its owner, never from whoever handed you this bundle.
"""
UNPACKED = 2**30
"""Largest total size of all members, in bytes."""

_LINKED = re.compile(r"linked/[0-9A-Za-z-]{1,80}\.json")


def check_bundle(path: Path, *, key: Ed25519PublicKey | None = None) -> Verification:
    """Check a .zip of one record: it and the records that refer to it are in the log, and its texts and files match."""
    verdict = Verification(str(path))
    try:
        with open_file(path.parent, path.name) as stream:
            _check_members(Members(stream), key, verdict)
    except (UnreadableError, OSError) as error:
        verdict.add("unclear", f"cannot be read as a bundle ({error})")
    except ValueError as error:
        verdict.add("tampered", f"cannot be read as a bundle ({error})")
    return verdict


def check_consistency(document: Any, *, key: Ed25519PublicKey | None = None) -> Verification:
    """Check that the newer of two checkpoints covers a log that begins with what the older one covered."""
    verdict = Verification("consistency proof")
    try:
        if not isinstance(document, dict) or document.keys() != {"schema", "old", "new", "path"}:
            raise ValueError("it has other keys than schema, old, new and path")
        if document["schema"] != CONSISTENCY_SCHEMA:
            verdict.add("unclear", f"its schema is {document['schema']!r}, unknown here")
            return verdict
        old, new = (read_checkpoint(compact(document[name])) for name in ("old", "new"))
        path = _path(document)
        if old.log != new.log:
            verdict.add("tampered", f"the checkpoints are of different logs, {old.log} and {new.log}")
        elif not is_consistent(old.size, new.size, path, bytes.fromhex(old.root), bytes.fromhex(new.root)):
            verdict.add(
                "tampered", f"the log of {new.size} records does not begin with the {old.size} of the older one"
            )
        verdict.records = new.size
        _check_signature(old, key, verdict)
        _check_signature(new, key, verdict)
    except (UnreadableError, RecursionError) as error:
        verdict.add("unclear", f"cannot be read as a consistency proof ({error})")
    except ValueError as error:
        verdict.add("tampered", f"cannot be read as a consistency proof ({error})")
    return verdict


def _check_members(bundle: Members, key: Ed25519PublicKey | None, verdict: Verification) -> None:
    records = _proof(bundle, verdict)
    if records is None:
        return
    point = read_checkpoint(bundle.read("checkpoint.json"))
    _check_signature(point, key, verdict)
    if bundle.read("README.txt") != README.encode():
        verdict.add("tampered", "README.txt was changed")
    entries = [_check_record(bundle.read(each["file"]), each, point, verdict) for each in records]
    verdict.records = len(entries)
    subject, gone = entries[0], {record for entry in entries for record in entry.removes}
    _check_names(bundle.names, subject, [each["file"] for each in records], verdict)
    for entry in entries[1:]:
        if subject.id not in (entry.body["link"] or {"records": ()})["records"]:
            verdict.add("tampered", "does not refer to the record of this bundle", entry.seq, entry.id)
    if "content.json" in bundle:
        _check_content(bundle.read("content.json"), subject, verdict)
    elif subject.content and subject.id not in gone:
        verdict.add("unclear", "its text is not in the bundle", subject.seq, subject.id)
    for artefact in subject.body["artefacts"]:
        name = f"artefacts/{artefact['path']}"
        if name not in bundle:
            if subject.id not in gone:
                verdict.add("unclear", f"{artefact['path']} is not in the bundle", subject.seq, subject.id)
        elif bundle.digest(name) != artefact["sha256"]:
            verdict.add("tampered", f"{artefact['path']} was changed", subject.seq, subject.id)


def _proof(bundle: Members, verdict: Verification) -> list[dict[str, Any]] | None:
    """The entries of proof.json, the subject first; None if it has another format."""
    proof = parse_json(bundle.read("proof.json"))
    schema = proof.get("schema") if isinstance(proof, dict) else None
    if schema == OPEN_SCHEMA:
        verdict.add("unclear", "an earlier llmxai wrote it in an open format, which proves less; export it again")
        return None
    if schema != BUNDLE_SCHEMA:
        verdict.add("unclear", f"its schema is {schema!r}, unknown here")
        return None
    records = proof["records"] if proof.keys() == {"schema", "records"} else None
    if not isinstance(records, list) or not records:
        raise ValueError("proof.json: expected schema and records")
    for each in records:
        keys = each.keys() if isinstance(each, dict) else ()
        if keys != {"file", "index", "path"} or type(each["index"]) is not int or not isinstance(each["file"], str):
            raise ValueError("proof.json: expected the file, index and path of each record")
    names = [each["file"] for each in records]
    if names[0] != "record.json" or not all(_LINKED.fullmatch(name) for name in names[1:]):
        raise ValueError("proof.json: the record that it proves is not record.json")
    return list(records)


def _check_names(names: Sequence[str], subject: Entry, records: Sequence[str], verdict: Verification) -> None:
    """Require exactly the expected members, once each and in order."""
    artefacts = [f"artefacts/{artefact['path']}" for artefact in subject.body["artefacts"]]
    for artefact in subject.body["artefacts"]:
        parts_of(artefact["path"])
    wanted = ["README.txt", "record.json", "content.json", *artefacts, *records[1:], "proof.json", "checkpoint.json"]
    known, there, may_lack = set(wanted), set(names), {"content.json", *artefacts}
    for name in names:
        if name not in known:
            verdict.add("tampered", f"{name} was put in: a bundle of this record has no such member")
    if [name for name in names if name in known] != [name for name in wanted if name in there or name not in may_lack]:
        verdict.add("tampered", "its members are not in their order, or one is there twice")


def _check_record(record: bytes, proof: dict[str, Any], point: Checkpoint, verdict: Verification) -> Entry:
    entry = read_entry(hashlib.sha256(record).hexdigest(), record)
    root, path = bytes.fromhex(point.root), _path(proof)
    if entry.seq != proof["index"] or not is_included(record, entry.seq, point.size, path, root):
        verdict.add("tampered", "is not in the log that the checkpoint covers", entry.seq, entry.id)
    if entry.body["chain"]["log"] != point.log:
        verdict.add("tampered", "is of another log than the checkpoint", entry.seq, entry.id)
    if proof["file"] not in ("record.json", f"linked/{entry.id}.json"):
        verdict.add("tampered", f"{proof['file']} is another record than its name says", entry.seq, entry.id)
    return entry


def _path(proof: dict[str, Any]) -> list[bytes]:
    steps = proof["path"]
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError("a Merkle path is none")
    return [bytes.fromhex(step) for step in steps]


def _check_content(line: bytes, subject: Entry, verdict: Verification) -> None:
    id, salt, texts = stored_texts(line)
    digests = {name: digest_of_text(salt, text) for name, text in texts.items()}
    same = (id, hashlib.sha256(line).hexdigest(), digests) == (subject.id, subject.content, subject.body["digests"])
    if not same:
        verdict.add("tampered", "its text was changed", subject.seq, subject.id)


def _check_signature(point: Checkpoint, key: Ed25519PublicKey | None, verdict: Verification) -> None:
    if point.keyid is None:
        if key is not None:
            verdict.add("unclear", "its checkpoint is unsigned")
    elif key is None:
        verdict.signature = f"signature not checked (no public key given; signed by key {point.keyid})"
    elif point.keyid != key_id(key):
        verdict.add("unclear", f"its checkpoint is signed by another key, {point.keyid}")
    elif not point.is_signed_by(key):
        verdict.add("tampered", "the signature of its checkpoint does not verify")
    else:
        verdict.signature = f"signed by key {point.keyid}"


END = struct.Struct("<4s4H2LH")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8
FLAGS = 0x0806
"""Bits that may be set: how hard Deflate tried, and a name in UTF-8."""
UTF8 = 0x0800


@dataclass(frozen=True)
class _Member:
    name: str
    deflated: bool
    crc: int
    packed: int
    size: int
    start: int
    """Offset of its bytes in the file."""


class Members:
    """The members of a .zip of which every byte belongs to one of them.

    `zipfile` is not used, since it ignores other bytes and trusts one of the two headers of a member: its view may
    differ from the files that another tool unpacks.
    """

    def __init__(self, stream: BufferedReader) -> None:
        """Raises ValueError if it is not a .zip, and UnreadableError for a .zip of another form."""
        self._stream = stream
        size = stream.seek(0, os.SEEK_END)
        tail = self._at(max(0, size - END.size - 2**16), END.size + 2**16)
        if b"PK\5\6" not in tail:
            raise ValueError("it is no .zip file")
        end = END.unpack(tail[-END.size :]) if len(tail) >= END.size else ()
        if end[:3] != (b"PK\5\6", 0, 0) or end[7] or end[3] != end[4] or end[6] + end[5] + END.size != size:
            raise UnreadableError("it has bytes before, between or after its members")
        if end[5] > LONGEST:
            raise UnreadableError("it has too many members")
        members = self._members(self._at(end[6], end[5]), end[3], end[6])
        if sum(member.size for member in members) > UNPACKED:
            raise UnreadableError(f"it would unpack to more than {UNPACKED} bytes")
        self.names = [member.name for member in members]
        self._known = {member.name: member for member in members}

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def read(self, name: str) -> bytes:
        """The contents of a member. Raises ValueError if it is missing or was changed."""
        if name in self._known and self._known[name].size > LONGEST:
            raise UnreadableError(f"{name} is larger than {LONGEST} bytes")
        return b"".join(self._unpacked(name))

    def digest(self, name: str) -> str:
        """SHA-256 of a member. Raises what `read` raises."""
        found = hashlib.sha256()
        for part in self._unpacked(name):
            found.update(part)
        return found.hexdigest()

    def _at(self, place: int, size: int) -> bytes:
        self._stream.seek(place)
        return self._stream.read(size)

    def _members(self, directory: bytes, count: int, end: int) -> list[_Member]:
        """The members, whose two headers must agree and cover every byte before `end`."""
        members, at, place = [], 0, 0
        for _ in range(count):
            if len(directory) < at + CENTRAL.size:
                raise UnreadableError("its directory is cut off")
            mark, _made, *shared, more, note, disk, _kind, attributes, offset = CENTRAL.unpack_from(directory, at)
            _needed, flags, method, _time, _date, crc, packed, size, length = shared
            raw = directory[at + CENTRAL.size : at + CENTRAL.size + length]
            name = _name(raw, flags)
            local = LOCAL.pack(b"PK\3\4", *shared, 0) + raw
            if mark != b"PK\1\2" or (more, note, disk, offset) != (0, 0, 0, place) or flags & ~FLAGS:
                raise UnreadableError(f"{name}: its entry in the directory is of another form")
            if method not in (STORED, DEFLATED) or (method == STORED and packed != size):
                raise UnreadableError(f"{name}: its compression (method {method}) is neither Stored nor Deflate")
            if stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG) or attributes & 0x10:
                raise UnreadableError(f"{name}: it is no file")
            if self._at(place, len(local)) != local:
                raise UnreadableError(f"{name}: its two headers contradict each other")
            members.append(_Member(name, method == DEFLATED, crc, packed, size, place + len(local)))
            at, place = at + CENTRAL.size + length, place + len(local) + packed
        if at != len(directory) or place != end:
            raise UnreadableError("it has bytes before, between or after its members")
        return members

    def _unpacked(self, name: str) -> Iterator[bytes]:
        if name not in self._known:
            raise ValueError(f"{name} is missing")
        member = self._known[name]
        crc = size = 0
        for part in self._inflated(member) if member.deflated else self._parts(member):
            crc, size = zlib.crc32(part, crc), size + len(part)
            yield part
        if (crc, size) != (member.crc, member.size):
            raise ValueError(f"{name} was changed: its bytes do not have its checksum")

    def _parts(self, member: _Member) -> Iterator[bytes]:
        for place in range(0, member.packed, CHUNK):
            yield self._at(member.start + place, min(CHUNK, member.packed - place))

    def _inflated(self, member: _Member) -> Iterator[bytes]:
        """Never more than one byte beyond the size that the headers say."""
        inflate, left = zlib.decompressobj(-zlib.MAX_WBITS), member.size
        try:
            for packed in self._parts(member):
                while packed and left >= 0:
                    part = inflate.decompress(packed, min(CHUNK, left + 1))
                    packed, left = inflate.unconsumed_tail, left - len(part)
                    yield part
        except zlib.error as error:
            raise ValueError(f"{member.name} was changed: it cannot be unpacked ({error})") from error
        if left or not inflate.eof or inflate.unused_data:
            raise UnreadableError(f"{member.name} does not unpack to the {member.size} bytes that its headers say")


def _name(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & UTF8 else "ascii")
    except UnicodeDecodeError:
        raise UnreadableError("a member has a name that is no UTF-8") from None
