"""Durable file operations of the log: append, cut off a tail, replace atomically."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmxai.evidence.record import File


def append_durably(path: Path, data: bytes) -> None:
    """Append and fsync. If the write fails half-way (a full disk), the file is restored to its old length."""
    before = path.stat().st_size if path.exists() else None
    try:
        with path.open("ab") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        if path.exists():
            os.truncate(path, before or 0)
        raise
    if before is None:
        sync_folder(path.parent)


def cut_to(path: Path, size: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(size)
        os.fsync(stream.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace the file with `data` by one rename."""
    with replacing(path) as stream:
        stream.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose contents replace the file by one rename, durably; after an error the file is unchanged."""
    descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a new name in the folder durable (POSIX; elsewhere a folder cannot be synced)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def last_line(path: Path) -> tuple[bytes, int]:
    """The last complete line without its newline, and the offset where it starts; (b"", 0) if there is none.

    Bytes after the last newline are not a complete line.
    """
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        size, tail = 0, b""
        while size < end and tail.count(b"\n") < 2:
            size = min(end, max(65536, size * 2))
            stream.seek(end - size)
            tail = stream.read(size)
    stop = tail.rfind(b"\n")
    if stop < 0:
        return b"", 0
    start = tail.rfind(b"\n", 0, stop) + 1
    return tail[start:stop], end - size + start


def describe(path: Path, *, base: Path) -> File:
    """The file's size and digest, as a record lists them."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path.relative_to(base).as_posix(), path.stat().st_size, digest)
