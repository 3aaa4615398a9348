"""What commands share: where messages go, and progress that suits a terminal or a log file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of other libraries, of which not all can be turned off otherwise

log = Console(stderr=True, highlight=False)


class Terminated(SystemExit):
    """SIGTERM, as an exception: what was begun is recorded and the log is closed, then the process ends with 143."""


@contextmanager
def told_when_interrupted(what: str) -> Iterator[None]:
    """Say `what` after Ctrl-C or SIGTERM, with what the evidence log has to add."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as interrupt:
        log.print(" ".join([what, *getattr(interrupt, "__notes__", ())]), soft_wrap=True)
        raise


Report = Callable[[str, int, int], None]
"""Called with (what is being done, steps that are done, steps)."""


@contextmanager
def progress() -> Iterator[Report]:
    """A bar on a terminal, a line a stage elsewhere."""
    if not log.is_terminal:
        yield _plain_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=log, transient=True) as bar:
        task = bar.add_task("", total=1)
        yield lambda stage, done, n: bar.update(task, description=stage, completed=done, total=n)


def _plain_lines() -> Report:
    seen: set[str] = set()

    def line(stage: str, _done: int, _n: int) -> None:
        if stage not in seen:
            seen.add(stage)
            log.print(f"llmxai: {stage}", soft_wrap=True)

    return line
