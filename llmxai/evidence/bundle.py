"""What is handed to a third party: one record with its proofs, texts and files, or the proof that a log only grew."""

from __future__ import annotations

import hashlib
import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmxai.errors import EvidenceError
from llmxai.evidence.files import replacing
from llmxai.evidence.log import Log, find, read_log
from llmxai.evidence.verifier.bundle import BUNDLE_SCHEMA, CONSISTENCY_SCHEMA, README, UNPACKED
from llmxai.evidence.verifier.check import last_line
from llmxai.evidence.verifier.folder import CHECKPOINTS, CONTENT, evidence_of
from llmxai.evidence.verifier.lines import Entry, UnreadableError, read_file, split_lines
from llmxai.evidence.verifier.proof import (
    Checkpoint,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    read_checkpoint,
    tree_hash,
)

UNIX = 3
"""What .zip calls the system that file modes are of."""


def prove(run: Path | str, id: str) -> dict[str, Any]:
    """The Merkle path (hex, lowest first) from a record to the root of the newest checkpoint that covers it."""
    log = read_log(run, manifests=True)
    entry, record = find(log, id)
    point, line = _covering(evidence_of(Path(run)), log, entry.seq)
    return {
        "id": entry.id,
        "index": entry.seq,
        "record_sha256": entry.hash,
        "leaf_hash": leaf_hash(record).hex(),
        "size": point.size,
        "root": point.root,
        "path": _path(log, entry.seq, point.size),
        "checkpoint": json.loads(line),
    }


def consistency(old: Path | str, new: Path | str | None, *, run: Path | str) -> dict[str, Any]:
    """The proof that the log at checkpoint `new` (default: the newest in the run) begins with that at `old`.

    Raises EvidenceError where a checkpoint cannot be read, or the log holds fewer records than one covers.
    """
    log, place = read_log(run, manifests=True), evidence_of(Path(run))
    first, last = _last_line(Path(old)), _last_line(Path(new) if new else place / CHECKPOINTS)
    before, after = read_checkpoint(first), read_checkpoint(last)
    if not 0 < before.size <= after.size <= len(log):
        raise EvidenceError(
            f"The checkpoints cover {before.size} and {after.size} records and the log holds {len(log)}; the older one "
            f"must cover no more than the newer, and that no more than the log. If records are gone: `llmxai verify`."
        )
    hashes = [leaf_hash(record) for _, record in log[: after.size]]
    path = [step.hex() for step in consistency_proof(hashes, before.size)]
    return {"schema": CONSISTENCY_SCHEMA, "old": json.loads(first), "new": json.loads(last), "path": path}


def export_bundle(run: Path | str, id: str, out: Path | str) -> Path:
    """Write one .zip with everything that checking this record takes. Raises EvidenceError."""
    log, out = read_log(run, manifests=True), Path(out)
    entry, record = find(log, id)
    linked = [each for each in log if entry.id in (each[0].body["link"] or {}).get("records", ())]
    place = evidence_of(Path(run))
    point, line = _covering(place, log, max([entry.seq, *(each.seq for each, _ in linked)]))
    records = {"record.json": (entry, record)} | {f"linked/{each.id}.json": (each, raw) for each, raw in linked}
    proof = {
        "schema": BUNDLE_SCHEMA,
        "records": [
            {"file": name, "index": each.seq, "path": _path(log, each.seq, point.size)}
            for name, (each, _) in records.items()
        ],
    }
    members = {
        "README.txt": README.encode(),
        "record.json": record,
        **_texts(place / CONTENT, entry),
        **_artefacts(place.parent, entry),
        **{name: raw for name, (_, raw) in records.items()},
        "proof.json": json.dumps(proof, indent=1).encode(),
        "checkpoint.json": line,
    }
    size = sum(map(len, members.values()))
    if size > UNPACKED:
        raise EvidenceError(f"{entry.id}: its files have {size} bytes and a bundle holds {UNPACKED} at most.")
    return _write(out, members)


def _artefacts(base: Path, entry: Entry) -> dict[str, bytes]:
    """The files of a record that are as it says: a later one may have replaced some."""
    members = {}
    for artefact in entry.body["artefacts"]:
        with suppress(FileNotFoundError, UnreadableError):
            data = read_file(base, artefact["path"], most=UNPACKED)
            if hashlib.sha256(data).hexdigest() == artefact["sha256"]:
                members[f"artefacts/{artefact['path']}"] = data
    return members


def _texts(path: Path, entry: Entry) -> dict[str, bytes]:
    try:
        lines, _ = split_lines(path)
        found = next((line for line in lines if hashlib.sha256(line).hexdigest() == entry.content), None)
    except UnreadableError as error:
        raise EvidenceError(f"{path}: {error}. Run `llmxai verify`.") from error
    return {} if found is None else {"content.json": found}


def _path(log: Log, index: int, size: int) -> list[str]:
    return [step.hex() for step in inclusion_proof([leaf_hash(record) for _, record in log[:size]], index)]


def _covering(place: Path, log: Log, seq: int) -> tuple[Checkpoint, bytes]:
    """The newest checkpoint over more than `seq` records, a signed one before an unsigned one."""
    try:
        points = [(read_checkpoint(line), line) for line in split_lines(place / CHECKPOINTS)[0]]
    except ValueError as error:
        raise EvidenceError(f"{place / CHECKPOINTS}: {error}. Run `llmxai verify`.") from error
    covering = [each for each in points if seq < each[0].size <= len(log)]
    if not covering:
        raise EvidenceError(f"{place}: no checkpoint covers record {seq} yet. `llmxai evidence seal` makes one.")
    point, line = max(covering, key=lambda each: (each[0].keyid is not None, each[0].size))
    if tree_hash([leaf_hash(record) for _, record in log[: point.size]]).hex() != point.root:
        raise EvidenceError(f"{place}: the log does not have the root of its checkpoint. Run `llmxai verify`.")
    return point, line


def _last_line(path: Path) -> bytes:
    try:
        line = last_line(path)
        read_checkpoint(line)
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path}: no checkpoint can be read there ({error}).") from error
    return line


def _write(out: Path, members: dict[str, bytes]) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, data in members.items():
                member = zipfile.ZipInfo(name)  # always of 1980: the same record gives the same bytes
                member.create_system, member.external_attr = UNIX, 0o644 << 16
                bundle.writestr(member, data, zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise EvidenceError(f"{out}: cannot be written ({error}).") from error
    return out
