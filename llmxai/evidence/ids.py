"""Ids of records: the second they were made in, and 64 random bits; or drawn from what the record is about."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime


def new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"


def derived_id(*parts: str) -> str:
    """24 hex digits of SHA-256 over the parts: whoever does the same work gives its record the same id."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
