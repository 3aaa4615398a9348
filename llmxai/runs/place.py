"""The folder of a run: one run in it at a time, of one recipe, and nobody else's files."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmxai.errors import OutputError
from llmxai.runs.processes import Processes
from llmxai.runs.recipe import Recipe


@contextmanager
def held_folder(out: Path, recipe: Recipe, team: Processes) -> Iterator[None]:
    """Hold the run's folder: one run in it at a time, and only of this recipe."""
    if not team.leads:
        yield
        return
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: is a file. Choose another folder with --out.")
        strangers = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
        if strangers and not (out / ".lock").exists():
            raise OutputError(
                f"{out}: holds {sorted(strangers)[0]!r} and no run, so it is left alone. Choose a new or an empty "
                f"folder with --out."
            )
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("a")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}). Choose another folder with --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{out}: another run is at work in it. Wait for it, or choose another --out.") from error
        _require_same(out, recipe)
        folders = ("", "records/", "ledger/", "tables/", "plots/")
        for scratch in [path for folder in folders for path in out.glob(f"{folder}.*-*")]:
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        yield


def _require_same(out: Path, recipe: Recipe) -> None:
    """A folder holds one recipe; only its rows may become more or fewer, and the workers others."""
    try:
        before = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["recipe"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{out}: its manifest.json is not that of a run ({error}). Choose another --out.") from error
    now = recipe.model_dump(mode="json")
    for document in (before, now):
        document["data"] = [{k: v for k, v in source.items() if k != "limit"} for source in document["data"]]
        document.pop("description", None)
        document.pop("workers", None)
    changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    if changed:
        raise OutputError(
            f"{out}: holds a run of recipe {before.get('name')!r} with another {', '.join(changed)}. Choose another "
            f"folder with --out, or remove this one."
        )
