"""The box that says which record a page belongs to, and how to check it. The page itself verifies nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmxai.report.tables import Setting, build_settings
from llmxai.report.visible import Text, visible


@dataclass(frozen=True)
class Provenance:
    record: Text
    """Id of the record in the log; empty where none was given."""
    command: Text
    """What to type to check it; empty where none was given."""
    details: tuple[Setting, ...]


def build_provenance_box(provenance: Mapping[str, Any] | None) -> Provenance | None:
    """From a mapping made by whoever keeps the records.

    `record` is the record's id, `verify` the exact command that checks it; everything else (digests, key, sign-off)
    is shown row by row, nested mappings with dotted keys.
    """
    if provenance is None:
        return None
    rest = {key: value for key, value in provenance.items() if key not in ("record", "verify")}
    return Provenance(
        record=visible(str(provenance.get("record", ""))),
        command=visible(str(provenance.get("verify", ""))),
        details=build_settings(rest),
    )
