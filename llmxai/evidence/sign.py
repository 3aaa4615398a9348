"""Checkpoints: an in-toto Statement about the log, signed as a DSSE envelope by securesystemslib."""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]

from llmxai.evidence.canonical import canonical
from llmxai.evidence.verifier.checkpoint import PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, key_id
from llmxai.evidence.verifier.folder import LOG


def checkpoint(
    *, log: str, size: int, root: str, head: str, prefix: str, prev: str | None, signer: Ed25519PrivateKey | None
) -> bytes:
    """One line of checkpoints.jsonl: `size` records of log `log` have the Merkle root `root` (hex).

    `head` is the hash of the last record, `prefix` the SHA-256 of the file so far and `prev` that of the checkpoint
    before it. Without a signer the envelope
    carries no signature: it still shows later, to whoever kept it, that the log was not cut or rewritten.
    """
    keyid = key_id(signer.public_key()) if signer else None
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": LOG, "digest": {"sha256": prefix}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            **{"log": log, "size": size, "root": root, "head": head},
            **{"prev": prev, "keyid": keyid, "time": utc_now()},
        },
    }
    envelope = Envelope(payload=canonical(statement), payload_type=PAYLOAD_TYPE, signatures={})
    if signer:
        public = SSlibKey.from_crypto(signer.public_key(), keyid=keyid)
        envelope.sign(CryptoSigner(signer, public))
    return canonical(envelope.to_dict())


def utc_now() -> str:
    """UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
