"""Check what a third party is handed: a bundle of one record (.zip), or a proof that one log grew from another."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmxai.evidence.verifier.lines import Entry, Verification, digest_of_text, read_entry, stored_texts
from llmxai.evidence.verifier.proof import Checkpoint, compact, is_consistent, is_included, key_id, read_checkpoint

BUNDLE_SCHEMA = "llmxai.bundle/1"
CONSISTENCY_SCHEMA = "llmxai.consistency/1"
UNREADABLE = (
    *(
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ValueError,
        EOFError,
        RuntimeError,
    ),
)
"""What foreign bytes can raise while they are read as a bundle or a proof."""


def check_bundle(path: Path, *, key: Ed25519PublicKey | None = None) -> Verification:
    """Check a .zip of one record: it and what refers to it stand in the log, and its texts and files are its own."""
    verdict = Verification(str(path))
    try:
        with zipfile.ZipFile(path) as bundle:
            _check_members(bundle, key, verdict)
    except UNREADABLE as error:
        verdict.add("tampered", f"cannot be read as a bundle ({error})")
    return verdict


def check_consistency(document: Any, *, key: Ed25519PublicKey | None = None) -> Verification:
    """Check that the newer of two checkpoints covers a log that begins with what the older one covered."""
    verdict = Verification("consistency proof")
    try:
        old, new = (read_checkpoint(compact(document[name])) for name in ("old", "new"))
        path = [bytes.fromhex(step) for step in document["path"]]
        if old.log != new.log:
            verdict.add("tampered", f"the checkpoints are of different logs, {old.log} and {new.log}")
        elif not is_consistent(old.size, new.size, path, bytes.fromhex(old.root), bytes.fromhex(new.root)):
            verdict.add(
                "tampered", f"the log of {new.size} records does not begin with the {old.size} of the older one"
            )
        verdict.records = new.size
        _check_signature(old, key, verdict)
        _check_signature(new, key, verdict)
    except UNREADABLE as error:
        verdict.add("tampered", f"cannot be read as a consistency proof ({error})")
    return verdict


def _check_members(bundle: zipfile.ZipFile, key: Ed25519PublicKey | None, verdict: Verification) -> None:
    proof = json.loads(bundle.read("proof.json"))
    if proof["schema"] != BUNDLE_SCHEMA:
        verdict.add("unclear", f"its schema is {proof['schema']!r}, unknown here")
        return
    point = read_checkpoint(bundle.read("checkpoint.json"))
    entries = [_check_record(bundle.read(each["file"]), each, point, verdict) for each in proof["records"]]
    verdict.records = len(entries)
    _check_signature(point, key, verdict)
    subject, gone = entries[0], {record for entry in entries for record in entry.removes}
    names = set(bundle.namelist())
    if "content.json" in names:
        _check_content(bundle.read("content.json"), subject, verdict)
    elif subject.content and subject.id not in gone:
        verdict.add("unclear", "its text is not in the bundle", subject.seq, subject.id)
    for artefact in subject.body["artefacts"]:
        member = f"artefacts/{artefact['path']}"
        if member not in names:
            if subject.id not in gone:
                verdict.add("unclear", f"{artefact['path']} is not in the bundle", subject.seq, subject.id)
        elif hashlib.sha256(bundle.read(member)).hexdigest() != artefact["sha256"]:
            verdict.add("tampered", f"{artefact['path']} was changed", subject.seq, subject.id)


def _check_record(record: bytes, proof: dict[str, Any], point: Checkpoint, verdict: Verification) -> Entry:
    entry = read_entry(hashlib.sha256(record).hexdigest(), record)
    path = [bytes.fromhex(step) for step in proof["path"]]
    if entry.seq != proof["index"] or not is_included(record, entry.seq, point.size, path, bytes.fromhex(point.root)):
        verdict.add("tampered", "is not in the log that the checkpoint covers", entry.seq, entry.id)
    return entry


def _check_content(line: bytes, subject: Entry, verdict: Verification) -> None:
    _, salt, texts = stored_texts(line)
    digests = {name: digest_of_text(salt, text) for name, text in texts.items()}
    if hashlib.sha256(line).hexdigest() != subject.content or digests != subject.body["digests"]:
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
