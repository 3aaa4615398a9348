"""The command line: registers the commands (llmxai/commands/) and handles their errors."""

from __future__ import annotations

import errno
import io
import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer

from llmxai.commands import evidence
from llmxai.commands.console import Terminated, log
from llmxai.commands.explain import EXAMPLES, demo, explain
from llmxai.commands.offline import check, methods, report, table
from llmxai.commands.run import gate, recipes, run
from llmxai.commands.send import send
from llmxai.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Explain a language model's answer token by token.",
)


def main() -> None:
    """Run a command. Exit 0 on success, 2 for invalid input (one paragraph), 130 after Ctrl-C and 143 after SIGTERM; a
    bug shows its traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in place of what its encoding does not have
    try:
        app(prog_name="llmxai")
    except UserError as error:
        _refuse(" ".join([str(error), *getattr(error, "__notes__", ())]))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _refuse(f"{error.filename}: the name is longer than the file system allows. Give a shorter one.")


@app.callback(invoke_without_command=True)
def _top(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        typer.echo(f"llmxai {version('llmxai')}")
        raise typer.Exit


app.command(epilog=EXAMPLES)(explain)
app.command()(demo)
app.command()(methods)
models = typer.Typer(no_args_is_help=True, help="What works for a model.")
models.command()(check)
app.add_typer(models, name="models")
for command in (
    *(evidence.verify, evidence.prove, evidence.consistency, evidence.export),
    *(evidence.redact, evidence.replay),
):
    app.command()(command)
app.add_typer(evidence.reviews, name="review")
app.add_typer(evidence.keys, name="keys")
app.add_typer(evidence.evidence, name="evidence")
app.command()(report)
app.command()(table)
app.command()(run)
app.command()(gate)
app.add_typer(recipes, name="recipes")
app.add_typer(send, name="send")


def _terminated(_signal: int, _frame: Any) -> NoReturn:
    raise Terminated(143)


def _refuse(paragraph: str) -> NoReturn:
    log.print(f"llmxai: {paragraph}", markup=False, soft_wrap=True)
    sys.exit(2)
