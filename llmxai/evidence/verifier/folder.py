"""Check a folder: the chain, the checkpoints, the stored texts and the artefacts."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmxai.evidence.verifier.lines import (
    MANIFEST,
    RECORD_SCHEMAS,
    BrokenLogError,
    Entry,
    UnreadableError,
    Verification,
    chained,
    digest_file,
    digest_of_text,
    parts_of,
    read_file,
    split_lines,
    stored_texts,
)
from llmxai.evidence.verifier.proof import Checkpoint, Frontier, key_id, read_checkpoint

LOG, CONTENT, CHECKPOINTS = "log.jsonl", "content.jsonl", "checkpoints.jsonl"
EVIDENCE = "evidence"
"""The folder of the log, in the folder of the files that it is about."""
INTERRUPTED = "the command that explained into the folder again was interrupted before it entered its record"
AGAIN = "Explain again into the same folder."
MOST_UNCOVERED = 10_000
"""After this many files that no record covers, no more are looked for."""


def evidence_of(run: Path) -> Path:
    """The folder with the log: `run` itself or its `evidence/`."""
    inside = os.path.lexists(run / LOG) and not os.path.lexists(run / EVIDENCE / LOG)
    return run if inside else run / EVIDENCE


def check_folder(run: Path, *, key: Ed25519PublicKey | None = None, held: Sequence[Checkpoint] = ()) -> Verification:
    """Check the log of `run`; artefacts are looked for next to the folder of the log.

    `key`: whose signature is required. `held`: checkpoints that were kept elsewhere; the log must begin with them.
    """
    place, verdict = evidence_of(run), Verification(str(run))
    if place != run and place.is_symlink():
        verdict.add("unclear", f"{place} is a link, and links are not followed")
        return verdict
    found = _lines_of(place / LOG, verdict)
    if found is None:
        return verdict
    points = _checkpoints(place / CHECKPOINTS, verdict)
    entries, states, broken = _walk(found[0], {point.size for point in (*points, *held)}, verdict)
    verdict.records = len(entries)
    if not entries and not found[1] and not verdict.findings:
        verdict.add("unclear", f"{place / LOG}: there is no record")
    if torn := found[1]:
        verdict.add(
            "unclear", f"{torn} bytes after the last whole record: an interrupted write, or a cut", len(entries)
        )
    for name, group in (("a checkpoint in the folder", points), ("the checkpoint that was held", held)):
        for point in group:
            broken = _check_point(point, f"{name} (over {point.size} records)", entries, states, broken, verdict)
    _check_signatures(points, held, key, verdict)
    if broken:
        verdict.add("note", "texts and files were not checked, since the log itself is damaged")
        return verdict
    removed = {record: entry for entry in entries for record in entry.removes}
    _check_content(place / CONTENT, entries, removed, verdict)
    covered = _check_files(place.parent, entries, removed, verdict)
    if place.name == EVIDENCE:  # else the log is among unrelated files
        _list_uncovered(place.parent, covered, verdict)
    return verdict


def _lines_of(path: Path, verdict: Verification) -> tuple[Iterator[bytes], int] | None:
    try:
        return split_lines(path)
    except (UnreadableError, OSError) as error:
        verdict.add("unclear", str(error))
        return None


States = dict[int, tuple[str, str, str]]
"""From a number of records to the Merkle root, the hash of the last record and the digest of the file so far."""


def _walk(lines: Iterator[bytes], sizes: set[int], verdict: Verification) -> tuple[list[Entry], States, bool]:
    """The records up to the first that does not fit, and whether there is one that does not."""
    frontier, prefix = Frontier(), hashlib.sha256()
    entries: list[Entry] = []
    states: States = {}

    def counted() -> Iterator[bytes]:
        for line in lines:
            prefix.update(line + b"\n")
            yield line

    try:
        for entry, record in chained(counted()):
            if entry.body["schema"] not in RECORD_SCHEMAS:
                verdict.add("unclear", f"its schema is {entry.body['schema']!r}, unknown here", entry.seq, entry.id)
            frontier.add(record)
            entries.append(entry)
            if frontier.size in sizes:
                states[frontier.size] = (frontier.root().hex(), entry.hash, prefix.hexdigest())
    except BrokenLogError as broken:
        verdict.add(broken.severity, broken.what, broken.seq, broken.record)
        return entries, states, True
    return entries, states, False


def _checkpoints(path: Path, verdict: Verification) -> list[Checkpoint]:
    points: list[Checkpoint] = []
    before: str | None = None
    lines, torn = _lines_of(path, verdict) or (iter(()), 0)
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            try:
                point = read_checkpoint(line)
                if point.prev != before:
                    raise ValueError("it does not follow the one before it: one was removed, moved or put in")
                points.append(point)
                before = hashlib.sha256(line).hexdigest()
            except UnreadableError as error:
                verdict.add("unclear", f"{path.name}, line {number}: {error}")
            except ValueError as error:
                verdict.add("tampered", f"{path.name}, line {number}: {error}")
    except UnreadableError as error:
        verdict.add("unclear", f"{path.name}, line {number + 1}: {error}")
    if torn:
        verdict.add("unclear", f"{path.name}: {torn} bytes after the last line: an interrupted write, or a cut")
    return points


def _check_point(
    point: Checkpoint, name: str, entries: Sequence[Entry], states: States, broken: bool, verdict: Verification
) -> bool:
    """Whether the log is damaged, as known before or according to this checkpoint."""
    if entries and point.log != entries[0].body["chain"]["log"]:
        verdict.add("tampered", f"{name} is of another log: {point.log}")
    elif point.size > len(entries):
        if not broken:
            gone = point.size - len(entries)
            verdict.add("tampered", f"{name} covers {gone} more: the end of the log was cut off", len(entries))
        return True
    elif point.size < 1 or states[point.size] != (point.root, point.head, point.prefix):
        verdict.add("tampered", f"{name} has another Merkle root: a record was rewritten", max(point.size - 1, 0))
        return True
    return broken


def _check_signatures(
    points: Sequence[Checkpoint], held: Sequence[Checkpoint], key: Ed25519PublicKey | None, verdict: Verification
) -> None:
    signed = [point for point in points if point.keyid is not None]
    if key is None:
        if signed:
            verdict.signature = f"signatures not checked (no public key given; signed by key {signed[-1].keyid})"
        return
    wanted, covered = key_id(key), 0
    for i, point in enumerate((*points, *held)):
        if point.keyid == wanted and not point.is_signed_by(key):
            verdict.add("tampered", f"a checkpoint over {point.size} records: its signature does not verify")
        elif point.keyid == wanted and i < len(points):
            covered = max(covered, point.size)
    if any(point.keyid != wanted and point not in points for point in held):
        verdict.add("note", "the checkpoint that was held is not signed by this key; it is used without a signature")
    if covered:
        verdict.signature = f"records 0 to {covered - 1} signed by key {wanted}"
    elif signed:
        verdict.signature = f"signed, but not by key {wanted}"
    if covered < verdict.records:
        verdict.add(
            "unclear", f"no checkpoint signed by this key covers it, nor what follows: {verdict.signature}", covered
        )


def _check_content(path: Path, entries: Sequence[Entry], removed: dict[str, Entry], verdict: Verification) -> None:
    """Every stored text must be the one that its record names; only texts that a later record removed may be gone."""
    found = _lines_of(path, verdict)
    if found is None:
        return
    lines, torn = found
    owners = [entry for entry in entries if entry.content]
    places: dict[str, list[int]] = {}
    for i, owner in enumerate(owners):
        places.setdefault(str(owner.content), []).append(i)
    place = 0
    try:
        for line in lines:
            known = places.get(hashlib.sha256(line).hexdigest(), [])
            next_one = bisect_left(known, place)
            if next_one == len(known):
                # a crash between the text and its record leaves one line too many, and only at the end
                verdict.add(*_stray(path, line, extra=place == len(owners) and not known))
                continue
            _missing(owners[place : known[next_one]], removed, verdict)
            _check_texts(line, owners[known[next_one]], removed, verdict)
            place = known[next_one] + 1
    except UnreadableError as error:
        verdict.add("unclear", str(error))
        return
    _missing(owners[place:], removed, verdict)
    if torn:
        verdict.add("unclear", f"{path.name}: {torn} bytes after the last line: an interrupted write, or a cut")


def _stray(path: Path, line: bytes, *, extra: bool) -> tuple[Any, str]:
    if extra:
        return "unclear", f"{path.name}: a text at its end that no record names: an interrupted write, or put in"
    return "tampered", f"{path.name}: a text that no record names, or twice, or in the wrong place: {line[:60]!r}"


def _missing(owners: Sequence[Entry], removed: dict[str, Entry], verdict: Verification) -> None:
    for owner in owners:
        if owner.id not in removed:
            verdict.add("tampered", "the text that it names was changed or removed", owner.seq, owner.id)


def _check_texts(line: bytes, owner: Entry, removed: dict[str, Entry], verdict: Verification) -> None:
    try:
        id, salt, texts = stored_texts(line)
        same = id == owner.id and {name: digest_of_text(salt, texts[name]) for name in texts} == owner.body["digests"]
    except UnreadableError as error:
        verdict.add("unclear", f"the text that it names {error}", owner.seq, owner.id)
        return
    except ValueError:
        same = False
    if not same:
        verdict.add("tampered", "its digests are not those of the text that it names", owner.seq, owner.id)
    if owner.id in removed:
        verdict.add(
            "note", f"its text is still stored, though record {removed[owner.id].seq} says it is gone", owner.seq
        )


@dataclass(frozen=True)
class _Claim:
    """A record's statement about a file."""

    entry: Entry
    bytes: int
    sha256: str
    entered: bool = False
    """Whether it is the ledger entry of the record's row in a run, which is written after the record."""
    before: frozenset[str] = frozenset()
    """SHA-256 of the file according to earlier records."""
    announced: Mapping[str, Any] | None = None
    """The file that a later record announced in its place, and that no record has named since."""


def _claims(entries: Sequence[Entry], verdict: Verification) -> tuple[dict[str, _Claim], int, int]:
    """By its path what the last record that names a file says of it; and the places of the last manifest with files and
    of a later one without, or -1.

    A manifest holds until the next one, and gives way to any later record. One without files says that they, and those
    of rows that are done again, are about to change.
    """
    named: dict[str, _Claim] = {}
    listed: dict[str, _Claim] = {}
    closed = reopened = -1
    replaced = 0
    for entry in entries:
        if entry.body["announced"]:
            for file in entry.body["announced"]:
                if file["path"] in named:
                    named[file["path"]] = replace(named[file["path"]], announced=file)
            continue
        files = [(file, False) for file in entry.body["artefacts"]]
        if entry.body["entered"] is not None:
            files.append((entry.body["entered"], True))
        if entry.body["kind"] == MANIFEST:
            listed = {file["path"]: _Claim(entry, file["bytes"], file["sha256"]) for file, _ in files}
            closed, reopened = (entry.seq, -1) if files else (closed, entry.seq)
            continue
        for file, entered in files:
            path, old = file["path"], named.get(file["path"])
            listed.pop(path, None)
            replaced += old is not None and not entered
            before = old.before | {old.sha256} if old is not None and entered else frozenset()
            named[path] = _Claim(entry, file["bytes"], file["sha256"], entered, before)
    if replaced:
        verdict.add("note", f"{replaced} files of earlier records were replaced by those of later ones")
    return named | listed, closed, reopened


def _check_files(
    base: Path, entries: Sequence[Entry], removed: dict[str, Entry], verdict: Verification
) -> frozenset[str]:
    """Each file must be as the last record that names it says. The paths of those for which one vouches."""
    claims, closed, reopened = _claims(entries, verdict)
    covered = set()
    for path, claim in claims.items():
        pending = claim.entry.seq > closed if claim.entered else claim.entry.seq < reopened
        if _check_file(base, path, claim, removed.get(claim.entry.id), verdict, pending=pending):
            covered.add(path)
    return frozenset(covered)


def _check_file(
    base: Path, path: str, claim: _Claim, removal: Entry | None, verdict: Verification, *, pending: bool
) -> bool:
    """Whether what lies there is vouched for, or something was said of it. `pending`: a run that was interrupted can
    have left it otherwise."""
    seq, id = claim.entry.seq, claim.entry.id
    try:
        parts_of(path)
    except UnreadableError as error:
        verdict.add("tampered", str(error), seq, id)
        return True
    try:
        digest, new = digest_file(base, path, size=claim.bytes), claim.announced
        replaced = new is not None and digest_file(base, path, size=new["bytes"]) == new["sha256"]
    except FileNotFoundError:
        if claim.announced is not None and removal is None:
            verdict.add("unclear", f"{path} is missing: {INTERRUPTED}, or it was removed. {AGAIN}", seq, id)
        elif pending and removal is None:
            verdict.add("unclear", f"{path} is missing: its run was interrupted, or it was removed", seq, id)
        elif removal is None:
            verdict.add("tampered", f"{path} is missing", seq, id)
        return True
    except (UnreadableError, OSError) as error:
        verdict.add("unclear", str(error), seq, id)
        return True
    if digest == claim.sha256:
        if removal is not None and not claim.entered:
            verdict.add("note", f"{path} is still there, though record {removal.seq} says it is gone", seq)
        return True
    if claim.entered and removal is not None:  # its texts were taken out of it
        return False
    if replaced:
        verdict.add("unclear", f"{path} is the one that was to replace it: {INTERRUPTED}. {AGAIN}", seq, id)
        return True
    told = f"its SHA-256 is {digest}" if digest else f"it does not have its {claim.bytes} bytes"
    if pending and (not claim.entered or _is_one_of(base, path, claim.before)):
        verdict.add("unclear", f"{path} is another: its run was interrupted, or it was changed ({told})", seq, id)
    else:
        verdict.add("tampered", f"{path} was changed: {told}", seq, id)
    return True


def _is_one_of(base: Path, path: str, digests: frozenset[str]) -> bool:
    return bool(digests) and hashlib.sha256(read_file(base, path)).hexdigest() in digests


def _list_uncovered(base: Path, covered: frozenset[str], verdict: Verification) -> None:
    """What lies in the folder and no record names, links among it; those are not followed."""
    folders = [""]
    while folders and len(verdict.uncovered) < MOST_UNCOVERED:
        prefix = folders.pop()
        try:
            with os.scandir(base / prefix) as found:
                inside = sorted(found, key=lambda each: each.name)
        except OSError as error:
            verdict.uncovered.append(f"{prefix} ({error.strerror})")
            continue
        for each in inside:
            path = prefix + each.name
            if each.is_dir(follow_symlinks=False):
                folders.append(f"{path}/")
            elif path not in covered and not _is_of_the_log(path, each):
                verdict.uncovered.append(f"{path} (a link)" if each.is_symlink() else path)
    if folders:
        verdict.add("note", f"more than {MOST_UNCOVERED} files of the folder are not covered; no more were looked for")
    verdict.uncovered.sort()


def _is_of_the_log(path: str, found: os.DirEntry[str]) -> bool:
    """The log's own files, and locks, which are empty."""
    if path in (".lock", f"{EVIDENCE}/.lock"):
        return found.is_file(follow_symlinks=False) and found.stat(follow_symlinks=False).st_size == 0
    return path in (f"{EVIDENCE}/{name}" for name in (LOG, CONTENT, CHECKPOINTS))
