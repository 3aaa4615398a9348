"""Durable file operations of the log: append, cut off a tail, replace atomically."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from llmxai.evidence.record import File

SCRATCH = re.compile(r"\..+-(old-)?[a-z0-9_]{8}")
"""Names of what is being written and gets its own name when it is complete."""
FOLDERS = ("", "records", "ledger", "tables", "plots", "index-data", "evidence")
"""Of a run, where such files can be; and in the folder of each record."""


def sweep(base: Path) -> None:
    """Remove what a killed process left in the folder of a run, or of an explanation, or next to it: it holds texts.

    Nothing is removed while a run is at work in the folder.
    """
    base = base.absolute()
    lock = FileLock(base / ".lock", timeout=0, preserve_lock_file=True) if (base / ".lock").is_file() else nullcontext()
    with suppress(OSError, Timeout), lock:
        folders = [folder for name in FOLDERS if (folder := base / name).is_dir()]
        folders += [folder for folder in base.glob("records/*") if folder.is_dir() and not folder.is_symlink()]
        found = [path for folder in folders for path in folder.iterdir()]
        found += [path for path in base.parent.iterdir() if path.name.startswith(f".{base.name}-")]
        for path in found:
            if SCRATCH.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif SCRATCH.fullmatch(path.name):
                path.unlink(missing_ok=True)


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


def make_durably(folder: Path) -> None:
    """Create the folder, and those above it that are missing, so that it is there after a power cut, too."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


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
