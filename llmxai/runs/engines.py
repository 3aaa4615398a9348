"""The lock on a run's folder, and the engines that compute its rows."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from llmxai.errors import OutputError
from llmxai.evaluation.planted_models import TRAINED, build
from llmxai.evidence.files import make_durably
from llmxai.models import LoadedModel, load
from llmxai.models.identity import environment_of, weights_digest
from llmxai.runs.ledger import MARK
from llmxai.runs.recipe import ModelSettings, Recipe, upgraded_recipe
from llmxai.runs.scheduling import Processes, Stop, Window, share
from llmxai.runs.worker import Worker
from llmxai.runs.writer import Progress, RunProgress, RunWriter


@contextmanager
def run_lock(out: Path, recipe: Recipe, team: Processes) -> Iterator[None]:
    """Lock the run's folder for one run at a time, and only of this recipe."""
    if not team.leads:
        yield
        return
    lock = FileLock(out / MARK, blocking=False, preserve_lock_file=True)
    try:
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out}: is a file. Choose another folder with --out.")
        strangers = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
        if strangers and MARK not in strangers:
            raise OutputError(
                f"{out}: holds {sorted(strangers)[0]!r} and no run, so it is left alone. Choose a new or empty "
                f"folder with --out."
            )
        make_durably(out)
        lock.acquire()
    except Timeout as error:
        raise OutputError(f"{out}: another run is using it. Wait for it, or choose another --out.") from error
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}). Choose another folder with --out.") from error
    try:
        _require_same(out, recipe)
        folders = ("", "records/", "ledger/", "tables/", "plots/", "index-data/", "evidence/")
        for scratch in [path for folder in folders for path in out.glob(f"{folder}.*-*")]:
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
        yield
    finally:
        lock.release()


def _require_same(out: Path, recipe: Recipe) -> None:
    """A folder belongs to one recipe; only the number of rows and the workers may change."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        before = Recipe.model_validate(upgraded_recipe(manifest["recipe"])).model_dump(mode="json")
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise OutputError(f"{out}: its manifest.json is not that of a run ({told}). Choose another --out.") from error
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


SAME = ("digest", "adapter", "quantization", "dtype", "tokenizer_digest", "chat_template_digest")


def is_of_this_model(out: Path, environment: Mapping[str, Any]) -> bool:
    """Whether the run in the folder was computed by this model, as far as its manifest tells."""
    try:
        told = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["environment"]["model"]
        then, now = ({file["sha256"] for file in model["weight_files"]} for model in (told, environment["model"]))
        return then <= now and all(told[name] == environment["model"][name] for name in SAME)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


EngineName = Literal["local", "accelerate", "ray"]
POLL = 0.05
"""Seconds between checks for rows that other processes prepared."""


@dataclass(frozen=True)
class EngineInfo:
    """The facts about an engine that planning needs."""

    model: str
    """Digest of the weights, or the model's name."""
    identity: str
    """Digest of everything that decides what it computes."""
    environment: dict[str, Any]
    tokenizer: Any


@runtime_checkable
class Engine(Protocol):
    """Call `start` first and `close` last; `perform` returns when every row is entered, or when `stop` says to begin no
    more rows."""

    @property
    def workers(self) -> int:
        """The number of workers; known after `start`."""
        ...

    def start(self, progress: Progress) -> EngineInfo: ...

    def perform(self, windows: Iterable[Window], clerk: RunWriter | None, stop: Stop) -> None: ...

    def close(self) -> None: ...


class TeamEngine:
    """This process, or several that share the run's folder (`accelerate launch`); the leading one has the writer."""

    def __init__(self, recipe: Recipe, run: Path, team: Processes, *, name: EngineName, signed_by: str | None) -> None:
        self.recipe, self.run, self.team, self.name, self.signed_by = recipe, run, team, name, signed_by
        self.worker: Worker | None = None

    @property
    def workers(self) -> int:
        return self.team.count

    def start(self, progress: Progress) -> EngineInfo:
        loaded = load_for(self.recipe.model, self.team, progress=progress, engine=self.name)
        self.worker = Worker.of(loaded, self.recipe, run=self.run, signed_by=self.signed_by)
        return site_of(loaded)

    def perform(self, windows: Iterable[Window], clerk: RunWriter | None, stop: Stop) -> None:
        assert self.worker is not None
        alone = self.team.count == 1
        for window in windows:
            if clerk is not None:
                clerk.expect(window)
                clerk.advance()
            for job in window.jobs if alone else share(window.jobs, self.team.count)[self.team.index]:
                if stop():
                    return
                if job.index in window.to_do:
                    self.worker.do(job)
                if clerk is not None:
                    clerk.advance()
        while clerk is not None and clerk.waits and not stop():
            time.sleep(POLL)
            clerk.advance()

    def close(self) -> None:
        pass


def site_of(loaded: LoadedModel) -> EngineInfo:
    model = weights_digest(loaded) or loaded.name
    return EngineInfo(model, loaded.identity.digest, environment_of(loaded), loaded.tokenizer)


def load_for(
    settings: ModelSettings,
    team: Processes,
    *,
    progress: Progress = lambda _news: None,
    engine: EngineName = "local",
) -> LoadedModel:
    """The model of a recipe; `marker`, `tracer` and `closed_form` are the models of the suites."""
    news = RunProgress("loading the model", engine=engine)
    progress(news)
    if settings.name == "closed_form":
        return build()
    name: str | Path = settings.name
    if (folder := TRAINED.get(settings.name)) is not None:
        if team.leads:
            folder(report=lambda stage, done, total: progress(replace(news, stage=stage, rows=done, total=total)))
        team.wait()
        name = folder()
    device_map = settings.device_map if settings.device_map is not None else team.device_map
    return load(name, **{**settings.model_dump(exclude={"name"}), "device_map": device_map})
