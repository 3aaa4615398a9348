"""Where the rows are computed: in this process and those beside it, or (cluster.py) by the actors of Ray Data."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from llmxai.evaluation.closed_form import build
from llmxai.evaluation.marker import marker_folder
from llmxai.explain import environment
from llmxai.models import LoadedModel, load
from llmxai.models.loading import weights_digest
from llmxai.runs.clerk import Clerk, News, Progress
from llmxai.runs.jobs import Stop, Window, share
from llmxai.runs.processes import Processes
from llmxai.runs.recipe import ModelSettings, Recipe
from llmxai.runs.work import Worker

EngineName = Literal["local", "accelerate", "ray"]
POLL = 0.05
"""Seconds between looks at what other processes prepared."""


@dataclass(frozen=True)
class Site:
    """What computes the rows, as far as whoever plans must know it."""

    model: str
    """Digest of the weights, or the model's name."""
    environment: dict[str, Any]
    tokenizer: Any


@runtime_checkable
class Engine(Protocol):
    """`start` comes first, `close` last; `perform` returns when every row is entered, or `stop` said that no more shall
    begin."""

    @property
    def workers(self) -> int:
        """How many work at the same time; known after `start`."""
        ...

    def start(self, progress: Progress) -> Site: ...

    def perform(self, windows: Iterable[Window], clerk: Clerk | None, stop: Stop) -> None: ...

    def close(self) -> None: ...


class TeamEngine:
    """This process, or the several of `accelerate launch` that share the run's folder; the leading one has a clerk."""

    def __init__(self, recipe: Recipe, run: Path, team: Processes, *, name: EngineName, signed_by: str | None) -> None:
        self.recipe, self.run, self.team, self.name, self.signed_by = recipe, run, team, name, signed_by
        self.worker: Worker | None = None

    @property
    def workers(self) -> int:
        return self.team.count

    def start(self, progress: Progress) -> Site:
        loaded = load_for(self.recipe.model, self.team, progress=progress, engine=self.name)
        self.worker = Worker.of(loaded, self.recipe, run=self.run, signed_by=self.signed_by)
        return site_of(loaded)

    def perform(self, windows: Iterable[Window], clerk: Clerk | None, stop: Stop) -> None:
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


def site_of(loaded: LoadedModel) -> Site:
    return Site(weights_digest(loaded) or loaded.name, environment(loaded), loaded.tokenizer)


def load_for(
    settings: ModelSettings,
    team: Processes,
    *,
    progress: Progress = lambda _news: None,
    engine: EngineName = "local",
) -> LoadedModel:
    """The model of a recipe; `marker` and `closed_form` are those of the suites."""
    news = News("loading the model", engine=engine)
    progress(news)
    if settings.name == "closed_form":
        return build()
    name: str | Path = settings.name
    if settings.name == "marker":
        if team.leads:
            marker_folder(
                report=lambda stage, done, total: progress(replace(news, stage=stage, rows=done, total=total))
            )
        team.wait()
        name = marker_folder()
    device_map = settings.device_map if settings.device_map is not None else team.device_map
    return load(name, **{**settings.model_dump(exclude={"name"}), "device_map": device_map})
