"""`llmxai run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from llmxai.commands._console import log

EVERY = 10.0
"""Seconds between lines where there is no terminal."""

Report = Callable[[str, int, int | None], None]


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (in recipes/) or file.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write or to go on in; runs/NAME by default.")] = None,
    settings: Annotated[list[str], typer.Option("--set", help="Change one setting: a.b=value, data.0.limit=5.")] = [],  # noqa: B006  (Typer wants a list)
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed rows again.")] = False,
) -> None:
    """Run a recipe: explain and evaluate every row of its data. The same command goes on where a run stopped.

    Several processes: accelerate launch --num_processes N -m llmxai run RECIPE --out DIR.
    """
    from llmxai.runs import find_recipe, read_recipe, run_recipe

    path = find_recipe(recipe)
    read = read_recipe(path, settings=settings)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = out if out is not None else Path("runs") / read.name
    try:
        with _progress() as report:
            outcome = run_recipe(read, folder, root=path.parent, retry_failed=retry_failed, progress=report)
    except KeyboardInterrupt:
        log.print(f"Interrupted. What is done is kept in {folder}; the same command goes on from there.")
        raise typer.Exit(130) from None
    if not outcome.leads:
        return
    typer.echo(f"rows: {outcome.ok} done, {outcome.failed} failed")
    typer.echo(f"index: {outcome.folder / 'index.html'}")


class _Rate(ProgressColumn):
    """Rows a second, or seconds a row."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed))


def _rate(speed: float | None) -> str:
    if not speed:
        return ""
    return f"{speed:.1f} rows/s" if speed >= 1 else f"{1 / speed:.1f} s/row"


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar with rate and time left on a terminal; a line every few seconds elsewhere."""
    if not log.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log, transient=True) as bar:
        tasks: dict[str, object] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                for old in list(bar.task_ids):
                    bar.remove_task(old)
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(bar.task_ids[-1], completed=done, total=total)

        yield report


class _Lines:
    """Plain lines for a log file: a new stage at once, rows every few seconds with rate and time left."""

    def __init__(self) -> None:
        self.stage = ""
        self.first = (0.0, 0)
        self.last = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.first, self.last = stage, (now, done), 0.0
        elif (now - self.last < EVERY and done != total) or now - self.last == 0:
            return
        self.last = now
        log.print(f"llmxai: {stage}{self._numbers(now, done, total)}")

    def _numbers(self, now: float, done: int, total: int | None) -> str:
        if not done:
            return ""
        text = f" {done}" if total is None else f" {done}/{total}"
        since, began = self.first
        if done == began or now == since:
            return text
        speed = (done - began) / (now - since)
        left = "" if total is None else f", {(total - done) / speed:.0f} s left"
        return f"{text}, {_rate(speed)}{left}"
