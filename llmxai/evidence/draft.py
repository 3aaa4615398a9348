"""A record with its texts that waits for the one writer of its log, as one JSON object on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from llmxai.evidence.canonical import plain
from llmxai.evidence.record import Record


@dataclass(frozen=True)
class Draft:
    """What `EvidenceLog.append` takes."""

    record: Record
    texts: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"record": plain(self.record), "texts": dict(self.texts)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Draft:
        """Raises ValueError where the document is no draft."""
        return cls(record=_reader().validate_python(document["record"]), texts=dict(document["texts"]))


@cache
def _reader() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Record)
