"""What is done: one small JSON file a row, written whole by one rename after everything else of the row is on disk.

A row counts as done if its file holds the row's key: a digest of its input, the model's digest and the settings. Killed
at any moment, a run leaves each row either done or not done, and whatever a half-done row left is replaced. The one
exception is a row whose evidence is in the log already: its record names the files by digest, so they must stay. Such a
row was prepared before, and is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmxai.errors import OutputError

SCHEMA = "llmxai.row/1"


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` into `path`, whole or not at all, also across a power cut. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}). Choose another folder with --out.") from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def key_of(**parts: Any) -> str:
    """SHA-256 over the parts as JSON with sorted keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode()).hexdigest()


class Ledger:
    """The rows of one run that are done."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "ledger"

    def find(self, row_id: str, *, key: str) -> dict[str, Any] | None:
        """The row's entry if it is done under this key."""
        entry = self.read(row_id)
        return entry if entry is not None and entry.get("key") == key else None

    def read(self, row_id: str) -> dict[str, Any] | None:
        """The row's entry, whatever its key; None where there is none that can be read."""
        return _read(self.folder / f"{row_id}.json")

    def prepare(self, row_id: str, entry: Mapping[str, Any]) -> None:
        """Keep what the row's entry will be, before its evidence is written; it does not count as done."""
        write_json(self._prepared(row_id), {"schema": SCHEMA, **entry})

    def prepared(self, row_id: str, *, key: str) -> bool:
        """Whether the row is prepared under this key."""
        entry = _read(self._prepared(row_id))
        return entry is not None and entry.get("key") == key

    def commit_prepared(self, row_id: str) -> None:
        """Say that the prepared row is done."""
        os.replace(self._prepared(row_id), self.folder / f"{row_id}.json")

    def commit(self, row_id: str, entry: Mapping[str, Any]) -> None:
        """Say that the row is done. Everything else of it must be on disk already."""
        write_json(self.folder / f"{row_id}.json", {"schema": SCHEMA, **entry})
        self._prepared(row_id).unlink(missing_ok=True)

    def count(self) -> int:
        """Rows that are done, by whichever process."""
        try:
            return sum(name.endswith(".json") and not name.startswith(".") for name in os.listdir(self.folder))
        except FileNotFoundError:
            return 0

    def _prepared(self, row_id: str) -> Path:
        return self.folder / f"{row_id}.prepared"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and entry.get("schema") == SCHEMA else None
