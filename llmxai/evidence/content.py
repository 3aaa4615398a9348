"""The texts of records: kept beside the log under a salt, or not at all (private).

A plain SHA-256 of a short text can be undone by guessing. So each digest is an HMAC: under a random salt that is stored
with the text and leaves with it, or, for a private record, under a secret key that is stored nowhere near the log.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from llmxai.evidence.canonical import canonical, printable
from llmxai.evidence.record import Content, Record
from llmxai.evidence.verifier.lines import digest_of_text


@dataclass(frozen=True)
class SecretKey:
    """The key of private digests."""

    value: bytes

    @property
    def id(self) -> str:
        """The first 16 digits of the key's SHA-256: it names the key and does not give it away."""
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
