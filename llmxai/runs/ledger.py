"""What is done: one small JSON file a row, written whole by one rename.

A row goes through two states on disk. `ID.prepared`: all its files are on the disk, and so are its entry and the draft
of its record. `ID.json`: its record is in the evidence log too, so it is done. Both hold the row's key: a digest of
its input, the model's digest and the settings. Killed at any moment, a run leaves each row done, prepared (the
writer of the log finishes it) or not done (whatever half of it there is gets replaced).

`ID.aborted` is the draft of an attempt that was interrupted, until the writer of the log takes it in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmxai.errors import OutputError
from llmxai.evidence import Draft
from llmxai.evidence.files import replace_durably

SCHEMA = "llmxai.row/1"


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` into `path`, whole or not at all, also across a power cut. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}). Choose another folder with --out.") from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(path, (text + "\n").encode("utf-8", "backslashreplace"))


def key_of(**parts: Any) -> str:
    """SHA-256 over the parts as JSON with sorted keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


class Ledger:
    """The rows of one run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "ledger"

    def find(self, row_id: str, *, key: str) -> dict[str, Any] | None:
        """The row's entry if it is done under this key."""
        entry = self.read(row_id)
        return entry if entry is not None and entry.get("key") == key else None

    def read(self, row_id: str) -> dict[str, Any] | None:
        """The row's entry, whatever its key; None where there is none that can be read."""
        return _read(self._path(row_id, "json"))

    def rows(self) -> list[str]:
        """The ids of the rows that are done."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def prepare(self, row_id: str, entry: Mapping[str, Any], draft: Draft | None) -> None:
        """Keep what the row's entry and its record will be. Everything else of the row must be on disk already."""
        kept = None if draft is None else draft.to_json()
        document = {"schema": SCHEMA, "key": entry["key"], "entry": dict(entry), "draft": kept}
        write_json(self._path(row_id, "prepared"), document)

    def prepared(self, row_id: str, *, key: str) -> tuple[dict[str, Any], Draft | None] | None:
        """The entry and the draft of the row, if it is prepared under this key."""
        found = _read(self._path(row_id, "prepared"))
        if found is None or found.get("key") != key:
            return None
        return found["entry"], None if found["draft"] is None else Draft.from_json(found["draft"])

    def is_prepared(self, row_id: str, *, key: str) -> bool:
        """Whether the row is prepared under this key."""
        found = _read(self._path(row_id, "prepared"))
        return found is not None and found.get("key") == key

    def has(self, row_id: str, *, key: str, attempt: str) -> bool:
        """Whether this very attempt at the row is prepared, or done: a batch may be given out again after that."""
        if self.is_prepared(row_id, key=key):  # looked at first: what is done was prepared until then
            return True
        entry = self.find(row_id, key=key)
        return entry is not None and entry.get("attempt") == attempt

    def commit(self, row_id: str, entry: Mapping[str, Any]) -> None:
        """Say that the row is done: its record is in the log."""
        write_json(self._path(row_id, "json"), {"schema": SCHEMA, **entry})
        self._path(row_id, "prepared").unlink(missing_ok=True)

    def abort(self, row_id: str, draft: Draft) -> None:
        """Keep the record of an attempt that was interrupted."""
        write_json(self._path(row_id, "aborted"), {"schema": SCHEMA, "draft": draft.to_json()})

    def aborted(self) -> Iterator[tuple[Path, Draft]]:
        """The records of interrupted attempts, each with its file."""
        for path in sorted(self.folder.glob("*.aborted")):
            found = _read(path)
            if found is not None:
                yield path, Draft.from_json(found["draft"])

    def _path(self, row_id: str, state: str) -> Path:
        return self.folder / f"{row_id}.{state}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and entry.get("schema") == SCHEMA else None
