"""Write one explanation as a folder, completely or not at all (docs/explanation-folder.md)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from llmxai.errors import OutputError
from llmxai.store.reading import SCHEMA

if TYPE_CHECKING:
    from llmxai.explanation import Explanation

FILES = ("report.html", "explanation.json", "maps.safetensors")
DERIVED = ("report.pdf", "report.rebuilt.html", "report.rebuilt.pdf")
"""Files that `llmxai report` may have added; they are removed when the explanation is replaced."""
EVIDENCE = "evidence"
"""The folder with the log, which is append-only, even when the explanation next to it is replaced."""

Render = Callable[[Mapping[str, Any], Mapping[str, np.ndarray], Mapping[str, str]], str]
"""From the parsed explanation.json, the maps and the SHA-256 of both files by name to the HTML page."""


def write_folder(
    explanation: Explanation,
    out: Path | str,
    *,
    render: Render,
    replace: bool = False,
    replacing: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Write `report.html`, `explanation.json` and `maps.safetensors` into `out`, which appears by one rename.

    An earlier explanation in `out` is replaced with `replace` alone; anything else is left alone. `replacing` is called
    with the folder of the complete new files before they replace others. Raises OutputError if `out` cannot be written.
    """
    from llmxai.store.document import to_json, to_maps

    out = Path(out)
    require_writable(out, replace=replace)
    document, maps = to_json(explanation), to_maps(explanation)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}). Choose another folder with --out.") from error
    try:
        text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
        (scratch / "explanation.json").write_text(text + "\n", encoding="utf-8")
        save_file(maps, scratch / "maps.safetensors", metadata={"schema": SCHEMA})
        digests = {name: _digest(scratch / name) for name in ("explanation.json", "maps.safetensors")}
        (scratch / "report.html").write_text(render(document, maps, digests), encoding="utf-8")
        scratch.chmod(0o755)
        (scratch / "maps.safetensors").chmod(0o644)
        if any((out / name).exists() for name in FILES):
            replacing(scratch)
        _put(scratch, out)
    except (OSError, SafetensorError) as error:  # a full disk is the latter while maps are written
        raise OutputError(f"{out}: cannot be written ({error}). Choose another folder with --out.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def require_writable(out: Path, *, replace: bool) -> None:
    """Raise OutputError if `out` is a file, holds other files or, without `replace`, an earlier explanation, or cannot
    be written.
    """
    try:
        nearest = next(place for place in out.absolute().parents if place.exists())
        tempfile.TemporaryDirectory(dir=nearest, prefix=f".{out.name}-").cleanup()  # rights alone do not say it
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}). Choose another folder with --out.") from error
    if broken := [place for place in (out, *out.parents) if place.is_symlink() and not place.exists()]:
        raise OutputError(
            f"{broken[0]}: is a link to {os.readlink(broken[0])}, which does not exist. Create that folder, or choose "
            f"another with --out."
        )
    if not out.exists():
        return
    if not os.access(out, os.W_OK):
        raise OutputError(f"{out}: cannot be written. Choose another folder with --out.")
    if not out.is_dir():
        raise OutputError(f"{out}: is a file. Choose another folder with --out.")
    strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in (*FILES, *DERIVED, EVIDENCE))
    if strangers:
        raise OutputError(
            f"{out}: holds {strangers[0]!r}, which llmxai did not write, so it is left alone. Choose a new or "
            f"empty folder with --out."
        )
    if not replace and (earlier := earlier_in(out)):
        raise OutputError(
            f"{out}: holds {earlier}. Choose another folder, or replace it with --overwrite, in Python with "
            f"save(..., replace=True); its record stays in the evidence."
        )


def earlier_in(out: Path) -> str:
    """The explanation in a folder, in words; empty if there is none."""
    if not any((out / name).exists() for name in FILES):
        return ""
    try:
        created = json.loads((out / "explanation.json").read_text(encoding="utf-8"))["created"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "an earlier explanation"
    return f"the explanation of {created}"


def evidence_folder(out: Path | str) -> Path:
    """The log's folder for an explanation in `out`."""
    return Path(out) / EVIDENCE


def _put(scratch: Path, out: Path) -> None:
    """By one rename if `out` is new; else file by file, restoring the earlier files if one fails."""
    for name in FILES:
        _sync(scratch / name)
    _sync_folder(scratch)
    if not out.exists():
        scratch.rename(out)
        _sync_folder(out.parent)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-old-"))
    earlier = [name for name in FILES if (out / name).exists()]
    try:
        for name in earlier:
            (out / name).rename(old / name)
        for name in FILES:
            (scratch / name).rename(out / name)
        _sync_folder(out)
        for name in DERIVED:
            (out / name).unlink(missing_ok=True)
    except BaseException:
        for name in FILES:
            if (old / name).exists():
                (old / name).replace(out / name)
            elif name not in earlier:
                (out / name).unlink(missing_ok=True)
        raise
    finally:
        if all((out / name).exists() for name in earlier):
            shutil.rmtree(old, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (POSIX; elsewhere a folder cannot be synced)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
