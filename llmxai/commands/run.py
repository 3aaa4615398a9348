"""`llmxai run` and `llmxai recipes`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from llmxai.commands.console import Terminated, json_text, log, run_progress, takes_unicode, told_when_interrupted

if TYPE_CHECKING:
    from llmxai.runs.gate import Condition

FailIf = Annotated[
    list[str],
    typer.Option(
        "--fail-if",
        help="Exit 3 if this holds: 'unconverged > 5%', 'failed > 0', 'deletion_path.mrr < 0.9'. Several times.",
    ),
]
Junit = Annotated[Path | None, typer.Option(help="JUnit XML to write, with conditions and rows as test cases.")]
Summary = Annotated[Path | None, typer.Option(help="Markdown to write, for a pull request.")]
LAUNCHED = "LLMXAI_LAUNCHED"
"""Set in the environment of processes that `--engine accelerate` started, so they start no others."""


def run(
    recipe: Annotated[str, typer.Argument(help="The name of a recipe (`llmxai recipes ls`) or its file.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write or to resume; runs/NAME by default.")] = None,
    settings: Annotated[list[str], typer.Option("--set", help="Change one setting: a.b=value, data.0.limit=5.")] = [],  # noqa: B006  (Typer wants a list)
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry failed rows.")] = False,
    engine: Annotated[
        Literal["local", "accelerate", "ray"],
        typer.Option(help="This process, several processes, or the actors of Ray Data."),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes or actors; default: workers.count, or one per GPU.")
    ] = None,
    progress: Annotated[
        Literal["rich", "json", "none"], typer.Option(help="Progress on stderr; json is one line per row.")
    ] = "rich",
    fail_if: FailIf = [],  # noqa: B006
    junit: Junit = None,
    summary: Summary = None,
) -> None:
    """Run a recipe: explain and evaluate every row of its data. The same command resumes a stopped run.

    Ctrl-C stops after the current rows, a second one at once. Several machines: docs/scale.md. With --fail-if the exit
    code is 3 if a condition holds: docs/use-in-ci.md.
    """
    from llmxai.runs import find_recipe, read_recipe, run_recipe
    from llmxai.runs.gate import read_condition, require_figures

    path = find_recipe(recipe)
    read = read_recipe(path, settings=settings)
    conditions = [read_condition(text) for text in fail_if]
    require_figures(conditions, explains=read.explain is not None, methods=read.evaluated)
    if engine == "accelerate" and not {"LOCAL_RANK", LAUNCHED} & os.environ.keys():
        import torch

        count = workers or read.workers.count or torch.cuda.device_count()
        if count > 1:
            raise typer.Exit(_launch(count))
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = out if out is not None else Path("runs") / read.name
    kept = f"Interrupted. Finished rows are kept in {folder}; the same command resumes there."
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
        typer.echo(f"stopped before the end; the same command resumes: {folder}")
        raise typer.Exit(130)
    typer.echo(f"index: {outcome.folder / 'index.html'}")
    if conditions or junit is not None or summary is not None:
        _judge(outcome.folder, conditions, junit=junit, summary=summary)


def gate(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
    fail_if: FailIf = [],  # noqa: B006
    junit: Junit = None,
    summary: Summary = None,
) -> None:
    """Check a finished run: exit 3 if a condition holds, and write what CI shows."""
    from llmxai.runs.gate import read_condition

    _judge(folder, [read_condition(text) for text in fail_if], junit=junit, summary=summary)


def _judge(folder: Path, conditions: Sequence[Condition], *, junit: Path | None, summary: Path | None) -> None:
    from llmxai.runs.gate import judge, write_junit, write_summary

    verdict = judge(folder, conditions)
    if junit is not None:
        write_junit(verdict, junit)
    if summary is not None:
        write_summary(verdict, summary)
    for each in verdict.judged:
        typer.echo(f"{'passed' if each.passed else 'FAILED'}: not {each.condition.text} ({each.shown})")
    if not verdict.passed:
        raise typer.Exit(3)


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks to stop after the current rows; the second is a KeyboardInterrupt."""
    asked = False

    def ask(_signal: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        log.print("Stopping after the current rows. Ctrl-C again stops at once.")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def _launch(workers: int) -> int:
    """Run this command in `workers` processes, as `accelerate launch` does for several GPUs; return its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(workers)]
    with subprocess.Popen([*command, "-m", "llmxai", *sys.argv[1:]], env=os.environ | {LAUNCHED: "1"}) as launched:
        while True:
            try:
                return launched.wait()
            except Terminated:
                launched.terminate()
            except KeyboardInterrupt:  # the terminal sends it to the processes too
                continue


recipes = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")

Settings = Annotated[list[str], typer.Option("--set", help="Change one setting: a.b=value, data.0.limit=5.")]


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 400).print(table)


@recipes.command("ls")
def ls(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of recipes. Default: recipes/ and the installed ones.")
    ] = None,
) -> None:
    """List recipes: name, model, data and purpose."""
    from llmxai.errors import UserError
    from llmxai.runs import read_recipe, recipe_names

    table = Table("recipe", "model", "data", "what it does", box=None, pad_edge=False)
    for name, path in recipe_names(folder).items():
        try:
            recipe = read_recipe(path)
        except UserError as error:
            table.add_row(name, "-", "-", f"cannot be read: {error}")
            continue
        data = ", ".join(source.label for source in recipe.data)
        table.add_row(name, recipe.model.name, data, recipe.description)
    _print(table)


@recipes.command("show")
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    settings: Settings = [],  # noqa: B006  (Typer wants a list)
) -> None:
    """Print a recipe with every default filled in."""
    import yaml

    from llmxai.runs import find_recipe, read_recipe

    resolved = read_recipe(find_recipe(recipe), settings=settings).model_dump(mode="json")
    typer.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=takes_unicode()), nl=False)


@recipes.command("validate")
def validate(
    recipe: Annotated[list[str], typer.Argument(help="Names or files of recipes.")],
    settings: Settings = [],  # noqa: B006
) -> None:
    """Check recipes; exit 2 with the errors of the first invalid one."""
    from llmxai.runs import find_recipe, read_recipe

    for name in recipe:
        path = find_recipe(name)
        read_recipe(path, settings=settings)
        typer.echo(f"{path}: valid")


@recipes.command("suites")
def suites() -> None:
    """List the generated suites and their options."""
    from llmxai.evaluation import SUITES

    table = Table("suite", "options", "what it asks", box=None, pad_edge=False)
    for entry in SUITES.values():
        table.add_row(entry.name, ", ".join(f"{k}={v}" for k, v in entry.options.items()), entry.summary)
    _print(table)


@recipes.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from llmxai.runs import json_schema

    typer.echo(json_text(json_schema(), indent=2))
