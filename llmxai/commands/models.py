"""`llmxai methods`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def methods() -> None:
    """List the attribution methods, what they need and where they come from."""
    from llmxai.methods import METHODS

    table = Table("method", "needs", "what it gives", "source", box=None, pad_edge=False)
    for entry in METHODS.values():
        table.add_row(entry.name, ", ".join(sorted(entry.needs)), entry.summary, entry.source)
    Console(width=None if sys.stdout.isatty() else 400).print(table)


def check(
    name: Annotated[str, typer.Argument(help="smollm2 (embedded), a .gguf file, a local folder or a hub name.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = None,
    quantize: Annotated[str | None, typer.Option(help="4bit or 8bit (bitsandbytes).")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of prompt and answer to plan the memory for.")] = 512,
    answer_tokens: Annotated[int, typer.Option(min=1, help="How many of them belong to the answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show what works for a model, from its configuration alone, before any long run."""
    from llmxai.models.check import check_model

    found = check_model(
        name, revision=revision, dtype=dtype, quantize=quantize, tokens=tokens, answer_tokens=answer_tokens
    )
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
        return
    size = f"{found.parameters / 1e6:,.1f} million weights, {found.depth} layers"
    typer.echo(f"{found.name}: {found.architecture}, {size}, context of {found.context_length or 'any'} tokens")
    table = Table("what", "works", "how, or why not", box=None, pad_edge=False)
    for row in found.capabilities:
        table.add_row(row.name, "yes" if row.works else "no", escape(row.note))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
