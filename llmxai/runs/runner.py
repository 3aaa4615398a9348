"""Run a recipe into a folder, row by row, so that it may be killed at any moment and the same command goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmxai.errors import OutputError
from llmxai.evaluation.closed_form import build
from llmxai.evaluation.marker import marker_folder
from llmxai.explain import environment
from llmxai.models import LoadedModel, load
from llmxai.models.loading import weights_digest
from llmxai.runs.data import count_rows, recipe_rows
from llmxai.runs.ledger import Ledger, key_of, write_json
from llmxai.runs.processes import Processes, processes
from llmxai.runs.recipe import ModelSettings, Recipe
from llmxai.runs.results import write_results
from llmxai.runs.work import Worker, in_evidence

SCHEMA = "llmxai.run/1"

Progress = Callable[[str, int, int | None], None]
"""Called with (what is being done, rows that are done, rows in all or None)."""


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to."""

    folder: Path
    ok: int
    failed: int
    leads: bool
    """Whether this is the process (of several) that speaks for all."""


def run_recipe(
    recipe: Recipe,
    out: Path | str,
    *,
    root: Path | str = ".",
    retry_failed: bool = False,
    progress: Progress = lambda _stage, _done, _all: None,
) -> RunOutcome:
    """Run `recipe` into the folder `out` (docs/recipes.md says what it holds), going on where an earlier call stopped.

    `root`: the folder that the data's relative paths count from. Rows that failed stay failed unless `retry_failed`.

    Raises RecipeError, ModelLoadError and OutputError before the first row; what is wrong with a single row is recorded
    as that row.
    """
    out, team = Path(out), processes()
    ledger = Ledger(out)
    with _folder(out, recipe, team):
        team.wait()
        loaded = load_for(recipe.model, team, progress=progress)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        if team.leads:
            write_json(out / "manifest.json", _manifest(recipe, loaded, status="running", started=started))
        ids = _work(recipe, loaded, out, Path(root), ledger, team, retry_failed, progress)
        team.wait()
        entries = [entry for row_id in ids if (entry := ledger.read(row_id)) is not None]
        outcome = RunOutcome(
            folder=out,
            ok=sum(entry["status"] == "ok" for entry in entries),
            failed=sum(entry["status"] != "ok" for entry in entries),
            leads=team.leads,
        )
        if team.leads:
            progress("writing tables", len(entries), len(entries))
            _drop_strangers(out, ids)
            write_results(out, recipe, entries)
            done = _manifest(recipe, loaded, status="finished", started=started)
            write_json(out / "manifest.json", done | _ending(out, outcome))
        team.wait()
    return outcome


def load_for(
    settings: ModelSettings, team: Processes, *, progress: Progress = lambda _stage, _done, _all: None
) -> LoadedModel:
    """The model of a recipe; `marker` and `closed_form` are those of the suites."""
    progress("loading the model", 0, None)
    if settings.name == "closed_form":
        return build()
    name: str | Path = settings.name
    if settings.name == "marker":
        if team.leads:
            marker_folder(report=progress)
        team.wait()
        name = marker_folder()
    device_map = settings.device_map if settings.device_map is not None else team.device_map
    return load(name, **{**settings.model_dump(exclude={"name"}), "device_map": device_map})


def _work(
    recipe: Recipe,
    loaded: LoadedModel,
    out: Path,
    root: Path,
    ledger: Ledger,
    team: Processes,
    retry_failed: bool,
    progress: Progress,
) -> list[str]:
    """Do every row that is this process's and not done; the ids of all rows, in order."""
    worker = Worker.of(loaded, recipe)
    shared = {"model": weights_digest(loaded) or loaded.name, "settings": _settings(recipe)}
    ids, total = [], count_rows(recipe)
    for index, row in enumerate(recipe_rows(recipe, root=root)):
        ids.append(row.id)
        if not team.mine(index):
            continue
        key = key_of(row=asdict(row), **shared)
        known = ledger.find(row.id, key=key)
        if known is None or (retry_failed and known["status"] != "ok"):
            if known is None and ledger.prepared(row.id, key=key) and in_evidence(out, row.id):
                ledger.commit_prepared(row.id)
            else:
                shutil.rmtree(out / "records" / row.id, ignore_errors=True)  # of another key, or half a row's work
                worker.do(row, key=key, run=out, ledger=ledger)
        progress("rows", ledger.count(), total)
    return ids


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What decides a row's numbers besides its input and the weights."""
    return recipe.model_dump(mode="json", include={"version", "model", "decoding", "explain", "evaluate"})


@contextmanager
def _folder(out: Path, recipe: Recipe, team: Processes) -> Iterator[None]:
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
        for scratch in [*out.glob(".*-*"), *out.glob("records/.*"), *out.glob("ledger/.*")]:
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        yield


def _require_same(out: Path, recipe: Recipe) -> None:
    """A folder holds one recipe; only its rows may become more or fewer."""
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
    changed = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
    if changed:
        raise OutputError(
            f"{out}: holds a run of recipe {before.get('name')!r} with another {', '.join(changed)}. Choose another "
            f"folder with --out, or remove this one."
        )


def _drop_strangers(out: Path, ids: list[str]) -> None:
    """Rows of an earlier, longer run are no rows of this one."""
    known = set(ids)
    for path in (out / "ledger").glob("*"):
        if path.stem not in known:
            path.unlink()
    for folder in (out / "records").glob("*"):
        if folder.name not in known:
            shutil.rmtree(folder)


def _manifest(recipe: Recipe, loaded: LoadedModel, *, status: str, started: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "status": status,
        "started": started,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": key_of(recipe=recipe.model_dump(mode="json")),
        "environment": environment(loaded),
    }


def _ending(out: Path, outcome: RunOutcome) -> dict[str, Any]:
    files = sorted(path for path in out.glob("*.parquet"))
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": {"ok": outcome.ok, "failed": outcome.failed},
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in files
        },
    }
