"""`llmxai run`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llmxai.commands.console import Terminated, log, run_progress, told_when_interrupted

LAUNCHED = "LLMXAI_LAUNCHED"
"""In the environment of processes that `--engine accelerate` started: they start no more."""


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (in recipes/) or file.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write or to go on in; runs/NAME by default.")] = None,
    settings: Annotated[list[str], typer.Option("--set", help="Change one setting: a.b=value, data.0.limit=5.")] = [],  # noqa: B006  (Typer wants a list)
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do failed rows again.")] = False,
    engine: Annotated[
        Literal["local", "accelerate", "ray"],
        typer.Option(help="What computes: this process, several of them, or the actors of Ray Data."),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes or actors; the recipe's workers.count, or one a GPU.")
    ] = None,
    progress: Annotated[
        Literal["rich", "json", "none"], typer.Option(help="How progress is told, on stderr: json is a line a row.")
    ] = "rich",
) -> None:
    """Run a recipe: explain and evaluate every row of its data. The same command goes on where a run stopped.

    Ctrl-C ends after the rows in hand, a second one at once. Several machines: docs/scale.md.
    """
    from llmxai.runs import find_recipe, read_recipe, run_recipe

    path = find_recipe(recipe)
    read = read_recipe(path, settings=settings)
    if engine == "accelerate" and not {"LOCAL_RANK", LAUNCHED} & os.environ.keys():
        import torch

        count = workers or read.workers.count or torch.cuda.device_count()
        if count > 1:
            raise typer.Exit(_launch(count))
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = out if out is not None else Path("runs") / read.name
    kept = f"Interrupted. What is done is kept in {folder}; the same command goes on from there."
    with told_when_interrupted(kept), run_progress(progress) as report, _asked_to_stop() as stop:
        outcome = run_recipe(
            read,
            folder,
            root=path.parent,
            engine=engine,
            workers=workers,
            retry_failed=retry_failed,
            command=shlex.join(["llmxai", *sys.argv[1:]]),
            progress=report,
            stop=stop,
        )
    if not outcome.leads:
        return
    typer.echo(f"rows: {outcome.ok} done, {outcome.failed} failed")
    if outcome.stopped:
        typer.echo(f"stopped before the end; the same command goes on: {folder}")
        raise typer.Exit(130)
    typer.echo(f"index: {outcome.folder / 'index.html'}")


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks to stop after the rows in hand; the second is a KeyboardInterrupt."""
    asked = False

    def ask(_signal: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        log.print("Stopping after the rows in hand. Ctrl-C again ends at once.")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _launch(workers: int) -> int:
    """This same command in `workers` processes, as `accelerate launch` starts them for several GPUs; its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(workers)]
    with subprocess.Popen([*command, "-m", "llmxai", *sys.argv[1:]], env=os.environ | {LAUNCHED: "1"}) as launched:
        while True:
            try:
                return launched.wait()
            except Terminated:
                launched.terminate()
            except KeyboardInterrupt:  # the processes of the terminal have it too
                continue
