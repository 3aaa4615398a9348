"""Records as canonical JSON, RFC 8785: one value, one sequence of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import rfc8785

EXACT = 2**53
"""Integers from here on are no exact JSON numbers for every reader; they are written as strings of digits."""


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
