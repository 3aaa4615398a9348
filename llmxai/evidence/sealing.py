"""Records as canonical JSON (RFC 8785), the digests of their texts, and signed checkpoints."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]

from llmxai.evidence.record import Content, Record
from llmxai.evidence.verifier.folder import LOG
from llmxai.evidence.verifier.lines import digest_of_text
from llmxai.evidence.verifier.proof import PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, key_id

EXACT = 2**53
"""Larger integers are not exact JSON numbers for every reader; they are written as strings of digits."""


def canonical(value: Any) -> bytes:
    """`value` in RFC 8785's form, after `plain`."""
    return rfc8785.dumps(plain(value))


def plain(value: Any) -> Any:
    """Dataclasses, enums, tuples and paths as JSON values. NaN and infinity become null, which says "no figure"."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int):
        return value if abs(value) < EXACT else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {printable(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return printable(str(value))


def printable(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class SecretKey:
    """The key of private digests."""

    value: bytes

    @property
    def id(self) -> str:
        """The first 16 digits of the key's SHA-256, which identify the key without revealing it."""
        return hashlib.sha256(self.value).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"SecretKey({self.id})"


def sealed(record: Record, texts: Mapping[str, str], *, private: SecretKey | None) -> tuple[Record, bytes | None]:
    """The record with the digests of its texts, and the line of content.jsonl that holds them (None when private)."""
    texts = {name: printable(text) for name, text in texts.items()}
    if not texts:
        return record, None
    key = private.value if private else secrets.token_bytes(32)
    digests = {name: digest_of_text(key, text) for name, text in texts.items()}
    if private:
        return replace(record, digests=digests, content=Content("private", None, private.id)), None
    line = canonical({"id": record.id, "salt": key.hex(), "texts": texts})
    content = Content("stored", hashlib.sha256(line).hexdigest())
    return replace(record, digests=digests, content=content), line


def checkpoint(
    *, log: str, size: int, root: str, head: str, prefix: str, prev: str | None, signer: Ed25519PrivateKey | None
) -> bytes:
    """One line of checkpoints.jsonl: `size` records of log `log` have the Merkle root `root` (hex).

    `head` is the hash of the last record, `prefix` the SHA-256 of the file so far and `prev` that of the checkpoint
    before it. Without a signer the envelope carries no signature; a copy kept elsewhere still shows later that the log
    was not cut or rewritten.
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
