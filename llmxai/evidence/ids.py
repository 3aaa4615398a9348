"""Ids of records: the second they were made in, and 64 random bits."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime


def new_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(8)}"
