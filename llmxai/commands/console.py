"""Progress of a command: a bar on a terminal, a line every few seconds in a log file, or JSON lines for a pipeline."""

from __future__ import annotations

import codecs
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from llmxai.runs import RunProgress
    from llmxai.runs.writer import Progress as OnProgress

ProgressKind = Literal["rich", "json", "none"]
EVERY = 10.0
"""Seconds between the lines of a run without a terminal."""
EVERY_STEP = 4.0
"""The same within a stage of one explanation."""


def takes_unicode() -> bool:
    """Whether standard output is UTF-8: elsewhere JSON and YAML are written with escapes, which mean the same."""
    return codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"


def json_text(value: Any, *, indent: int = 1) -> str:
    """JSON for standard output."""
    return json.dumps(value, ensure_ascii=not takes_unicode(), indent=indent)


@contextmanager
def run_progress(kind: ProgressKind) -> Iterator[OnProgress]:
    """Reports the progress of a run, always on stderr."""
    if kind == "none":
        yield lambda _news: None
    elif kind == "json":
        yield _json_line
    elif not log.is_terminal:
        yield _Lines()
    else:
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")),
            *(TextColumn("{task.fields[words]}"), TimeElapsedColumn()),
        )
        with Progress(*columns, console=log, transient=True) as bar:
            yield _Bar(bar)


def _json_line(news: RunProgress) -> None:
    figures = {name: None if value is None else round(value, 3) for name, value in _rates(news).items()}
    sys.stderr.write(json.dumps({**asdict(news), **figures}) + "\n")
    sys.stderr.flush()


def _rates(news: RunProgress) -> dict[str, float | None]:
    """Rows and targets per second in this call, and the seconds left at that rate; None if unknown."""
    seconds = news.seconds or None
    rows = None if seconds is None or not news.fresh else news.fresh / seconds
    return {
        "rows_per_second": rows,
        "targets_per_second": None if seconds is None or not news.fresh else news.targets / seconds,
        "seconds_left": None if rows is None or news.total is None else (news.total - news.rows) / rows,
    }


def _words(news: RunProgress) -> str:
    """Rate, tokens, failures and time left, as far as known."""
    rates = _rates(news)
    rows, targets, left = rates["rows_per_second"], rates["targets_per_second"], rates["seconds_left"]
    words = [f"engine {news.engine}"]
    if rows:
        words += [_pace(rows, "row"), f"{news.tokens} tokens"]
    if targets:
        words.append(_pace(targets, "target"))
    words.append(f"{news.failed} failed")
    if left is not None:
        words.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(words)


def _pace(rate: float, what: str) -> str:
    """A rate per second or, if slower, the seconds for one."""
    return f"{rate:.1f} {what}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{what}"


class _Bar:
    """One task per stage; it replaces the one before."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.stage: str | None = None
        self.task = TaskID(0)

    def __call__(self, news: RunProgress) -> None:
        if news.stage != self.stage:
            for old in list(self.bar.task_ids):
                self.bar.remove_task(old)
            self.stage, self.task = news.stage, self.bar.add_task(news.stage, words="")
        self.bar.update(self.task, completed=news.rows, total=news.total, words=_words(news))


class _Lines:
    """Plain lines for a log file: a new stage immediately, rows every few seconds."""

    def __init__(self) -> None:
        self.stage = ""
        self.last = 0.0

    def __call__(self, news: RunProgress) -> None:
        now = time.monotonic()
        if news.stage == self.stage and now - self.last < EVERY and news.rows != news.total:
            return
        self.stage, self.last = news.stage, now
        of = "" if news.total is None else f"/{news.total}"
        count = f" {news.rows}{of} ({_words(news)})" if news.rows and news.stage == "rows" else ""
        log.print(f"llmxai: {news.stage}{count}", soft_wrap=True)


os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of other libraries, of which not all can be turned off otherwise

log = Console(stderr=True, highlight=False)


class Terminated(SystemExit):
    """SIGTERM as an exception: current work is recorded and the log is closed, then the process exits with 143."""


@contextmanager
def told_when_interrupted(what: str) -> Iterator[None]:
    """Print `what` after Ctrl-C or SIGTERM, with notes from the evidence log."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as interrupt:
        log.print(" ".join([what, *getattr(interrupt, "__notes__", ())]), soft_wrap=True)
        raise


class Report(Protocol):
    """What a command reports while it works, on stderr."""

    def __call__(self, stage: str, done: int, n: int) -> None:
        """The stage, and how many of its steps are done."""

    def show(self, lines: Iterable[Text]) -> None:
        """What is known so far."""


@contextmanager
def progress() -> Iterator[Report]:
    """On a terminal a bar, below what is known so far; both disappear at the end. Elsewhere plain lines."""
    if not log.is_terminal:
        yield _PlainStages()
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left:")),
        *(TimeRemainingColumn(), TextColumn("in all:"), TimeElapsedColumn()),
    )
    with _Known(*columns, console=log, transient=True, redirect_stdout=False) as bar:
        yield _LiveStages(bar)


class _Known(Progress):
    """A progress bar with lines above it."""

    known: tuple[Text, ...] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from self.known
        yield from super().get_renderables()


class _LiveStages:
    """One bar, which each stage starts again; the time since the command began goes on."""

    def __init__(self, bar: _Known) -> None:
        self.bar = bar
        self.began = bar.get_time()
        self.stage: str | None = None
        self.task = TaskID(0)

    def __call__(self, stage: str, done: int, n: int) -> None:
        total = n if n > 1 else None
        if stage != self.stage:
            for old in list(self.bar.task_ids):
                self.bar.remove_task(old)
            self.stage, self.task = stage, self.bar.add_task(stage, total=total)
            self.bar.tasks[0].start_time = self.began
        self.bar.update(self.task, completed=done, total=total)

    def show(self, lines: Iterable[Text]) -> None:
        self.bar.known = tuple(lines)
        self.bar.refresh()


class _PlainStages:
    """A line when a stage begins; within one, every few seconds, its count and the time left."""

    def __init__(self) -> None:
        self.begun: dict[str, tuple[float, int]] = {}
        """By stage the time and count of its first report, or of the first with a step done."""
        self.last = 0.0
        self.shown: list[Text] = []

    def __call__(self, stage: str, done: int, n: int) -> None:
        now = time.monotonic()
        if stage not in self.begun:
            self.last = now
            log.print(f"llmxai: {stage}", markup=False, soft_wrap=True)
        since, first = self.begun.setdefault(stage, (now, done))
        if first == 0 < done:  # what came before the first step, such as planning, says nothing of the pace
            self.begun[stage] = (now, done)
        elif first < done < n and now - self.last >= EVERY_STEP:
            self.last = now
            left = timedelta(seconds=round((now - since) * (n - done) / (done - first)))
            log.print(f"llmxai: {stage}, {done} of {n}, {left} left", markup=False, soft_wrap=True)

    def show(self, lines: Iterable[Text]) -> None:
        lines = list(lines)
        known = len(self.shown) if lines[: len(self.shown)] == self.shown else 0
        for line in lines[known:]:
            log.print(line, soft_wrap=True)
        self.shown = lines
