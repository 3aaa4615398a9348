"""Check a folder: the chain, the checkpoints, the stored texts and the artefacts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmxai.evidence.verifier.lines import (
    RECORD_SCHEMA,
    BrokenLogError,
    Entry,
    Verification,
    chained,
    digest_of_text,
    split_lines,
    stored_texts,
)
from llmxai.evidence.verifier.proof import Checkpoint, Frontier, key_id, read_checkpoint

LOG, CONTENT, CHECKPOINTS = "log.jsonl", "content.jsonl", "checkpoints.jsonl"


def evidence_of(run: Path) -> Path:
    """The folder with the log: `run` itself or its `evidence/`."""
    return run if (run / LOG).exists() and not (run / "evidence" / LOG).exists() else run / "evidence"


def check_folder(run: Path, *, key: Ed25519PublicKey | None = None, held: Sequence[Checkpoint] = ()) -> Verification:
    """Check the log of `run`; artefacts are looked for beside the folder of the log.

    `key`: whose signature is required. `held`: checkpoints that were kept elsewhere; the log must begin with them.
    """
    place, verdict = evidence_of(run), Verification(str(run))
    lines, torn = split_lines(place / LOG)
    points = _checkpoints(place / CHECKPOINTS, verdict)
    entries, states = _walk(lines, {point.size for point in (*points, *held)}, verdict)
    verdict.records = len(entries)
    if not entries and not torn and not verdict.findings:
        verdict.add("unclear", f"{place / LOG}: there is no record")
    if torn:
        verdict.add(
            "unclear", f"{torn} bytes after the last whole record: an interrupted write, or a cut", len(entries)
        )
    for name, group in (("a checkpoint in the folder", points), ("the checkpoint that was held", held)):
        for point in group:
            _check_point(point, f"{name} (over {point.size} records)", entries, states, verdict)
    _check_signatures(points, held, key, verdict)
    if any(finding.severity == "tampered" and finding.seq is not None for finding in verdict.findings):
        verdict.add("note", "texts and files were not checked, since the log itself is not whole")
        return verdict
    removed = {record: entry for entry in entries for record in entry.removes}
    _check_content(place / CONTENT, entries, removed, verdict)
    _check_artefacts(place.parent, entries, removed, verdict)
    return verdict


States = dict[int, tuple[str, str, str]]
"""From a number of records to the Merkle root, the hash of the last record and the digest of the file so far."""


def _walk(lines: Iterator[bytes], sizes: set[int], verdict: Verification) -> tuple[list[Entry], States]:
    frontier, prefix = Frontier(), hashlib.sha256()
    entries: list[Entry] = []
    states: States = {}

    def counted() -> Iterator[bytes]:
        for line in lines:
            prefix.update(line + b"\n")
            yield line

    try:
        for entry, record in chained(counted()):
            if entry.body["schema"] != RECORD_SCHEMA:
                verdict.add("unclear", f"its schema is {entry.body['schema']!r}, unknown here", entry.seq, entry.id)
            frontier.add(record)
            entries.append(entry)
            if frontier.size in sizes:
                states[frontier.size] = (frontier.root().hex(), entry.hash, prefix.hexdigest())
    except BrokenLogError as broken:
        verdict.add("tampered", broken.what, broken.seq, broken.record)
    return entries, states


def _checkpoints(path: Path, verdict: Verification) -> list[Checkpoint]:
    lines, torn = split_lines(path)
    points: list[Checkpoint] = []
    before: str | None = None
    for number, line in enumerate(lines):
        try:
            point = read_checkpoint(line)
            if point.prev != before:
                raise ValueError("it does not follow the one before it: one was removed, moved or put in")
            points.append(point)
            before = hashlib.sha256(line).hexdigest()
        except ValueError as error:
            verdict.add("tampered", f"{path.name}, line {number + 1}: {error}")
    if torn:
        verdict.add("unclear", f"{path.name}: {torn} bytes after the last line: an interrupted write, or a cut")
    return points


def _check_point(point: Checkpoint, name: str, entries: Sequence[Entry], states: States, verdict: Verification) -> None:
    if entries and point.log != entries[0].body["chain"]["log"]:
        verdict.add("tampered", f"{name} is of another log: {point.log}")
    elif point.size > len(entries):
        if not any(finding.severity == "tampered" for finding in verdict.findings):
            gone = point.size - len(entries)
            verdict.add("tampered", f"{name} covers {gone} more: the end of the log was cut off", len(entries))
    elif point.size < 1 or states[point.size] != (point.root, point.head, point.prefix):
        verdict.add("tampered", f"{name} has another Merkle root: a record was rewritten", max(point.size - 1, 0))


def _check_signatures(
    points: Sequence[Checkpoint], held: Sequence[Checkpoint], key: Ed25519PublicKey | None, verdict: Verification
) -> None:
    signed = [point for point in points if point.keyid is not None]
    if key is None:
        if signed:
            verdict.signature = f"signatures not checked (no public key given; signed by key {signed[-1].keyid})"
        return
    wanted, covered = key_id(key), 0
    for point in (*points, *held):
        if point.keyid == wanted and not point.is_signed_by(key):
            verdict.add("tampered", f"a checkpoint over {point.size} records: its signature does not verify")
        elif point.keyid == wanted and point in points:
            covered = max(covered, point.size)
        elif point in held and point not in points:
            verdict.add("note", "the checkpoint that was held is not signed by this key; it is taken as it is")
    if covered:
        verdict.signature = f"records 0 to {covered - 1} signed by key {wanted}"
    elif signed:
        verdict.signature = f"signed, but not by key {wanted}"
    if covered < verdict.records:
        verdict.add(
            "unclear", f"no checkpoint signed by this key covers it, nor what follows: {verdict.signature}", covered
        )


def _check_content(path: Path, entries: Sequence[Entry], removed: dict[str, Entry], verdict: Verification) -> None:
    """Every stored text must be the one that its record names; only what a later record says is gone may be missing."""
    lines, torn = split_lines(path)
    owners = [entry for entry in entries if entry.content]
    place = 0
    for line in lines:
        digest = hashlib.sha256(line).hexdigest()
        found = next((i for i in range(place, len(owners)) if owners[i].content == digest), None)
        if found is None:
            # a crash between the text and its record leaves one line too many, and only at the end
            extra = place == len(owners) and not any(owner.content == digest for owner in owners)
            verdict.add(*_stray(path, line, extra))
            continue
        _missing(owners[place:found], removed, verdict)
        _check_texts(line, owners[found], removed, verdict)
        place = found + 1
    _missing(owners[place:], removed, verdict)
    if torn:
        verdict.add("unclear", f"{path.name}: {torn} bytes after the last line: an interrupted write, or a cut")


def _stray(path: Path, line: bytes, extra: bool) -> tuple[Any, str]:
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
    except ValueError:
        same = False
    if not same:
        verdict.add("tampered", "its digests are not those of the text that it names", owner.seq, owner.id)
    if owner.id in removed:
        verdict.add(
            "note", f"its text is still stored, though record {removed[owner.id].seq} says it is gone", owner.seq
        )


def _check_artefacts(base: Path, entries: Sequence[Entry], removed: dict[str, Entry], verdict: Verification) -> None:
    """Each file must be as the last record that names it says."""
    last = {artefact["path"]: entry for entry in entries for artefact in entry.body["artefacts"] or ()}
    replaced = 0
    for entry in entries:
        for artefact in entry.body["artefacts"] or ():
            if last[artefact["path"]] is entry:
                _check_file(base, artefact, entry, removed, verdict)
            else:
                replaced += 1
    if replaced:
        verdict.add("note", f"{replaced} files of earlier records were replaced by those of later ones")


def _check_file(
    base: Path, artefact: dict[str, Any], entry: Entry, removed: dict[str, Entry], verdict: Verification
) -> None:
    path = PurePosixPath(artefact["path"])
    if path.is_absolute() or ".." in path.parts or "\0" in artefact["path"]:
        verdict.add("tampered", f"{path}: names a file outside the folder", entry.seq, entry.id)
        return
    try:
        if (base / path).exists() and not (base / path).is_file():
            raise OSError("it is no file")
        with (base / path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        if entry.id not in removed:
            verdict.add("tampered", f"{path} is missing", entry.seq, entry.id)
        return
    except OSError as error:
        verdict.add("unclear", f"{path} cannot be read ({error})", entry.seq, entry.id)
        return
    if digest != artefact["sha256"]:
        verdict.add("tampered", f"{path} was changed: its SHA-256 is {digest}", entry.seq, entry.id)
    elif entry.id in removed:
        verdict.add("note", f"{path} is still there, though record {removed[entry.id].seq} says it is gone", entry.seq)
