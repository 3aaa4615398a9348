"""`llmxai methods`, `check`, `report` and `table`: what needs no model's weights."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmxai.commands.console import log, progress


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
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of prompt and answer to plan memory and time for.")] = 512,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", "--targets", min=1, help="How many of them belong to the answer.")
    ] = 64,
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


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of an explanation or of a run.", show_default=False)],
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Also print the last page that is listed to a PDF (needs Chromium).")
    ] = False,
) -> None:
    """Rebuild the HTML pages of an explanation or a run from its stored data, without loading a model."""
    from llmxai.evidence import clean_up, signing_key, vouched
    from llmxai.evidence.provenance import provenances_of, records_of, reviews_of
    from llmxai.report.export import find_chromium, write_pdf
    from llmxai.report.rebuild import rebuild, unnoticed

    if pdf:
        find_chromium()
    with vouched(folder, signer=signing_key()) as changing:
        if killed := clean_up(folder):
            changing()
        with progress() as said:
            provenance, noticed = provenances_of(folder), unnoticed if killed else changing  # all pages are written
            done = rebuild(
                folder,
                provenance=provenance,
                records=records_of,
                reviews=reviews_of,
                report=said,
                changing=noticed,
            )
        if pdf:
            changing()
            printed = write_pdf(done.page)
    for failure in done.failures:
        log.print(f"llmxai: {failure}", markup=False, soft_wrap=True)
    typer.echo(f"pages: {done.pages}")
    typer.echo(f"report: {done.page}")
    if pdf:
        typer.echo(f"pdf: {printed}")
    if done.failures:
        raise typer.Exit(1)


def table(
    folder: Annotated[Path, typer.Argument(help="Folder of an explanation or of a run.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="File to write: .csv, .json or .parquet.", show_default=False)],
    rows: Annotated[
        str | None,
        typer.Option(
            help="records, tokens, sources, traced, documents or spans. [default: tokens, or records for a run]"
        ),
    ] = None,
) -> None:
    """Write the stored numbers of an explanation or a run as one flat table: CSV, JSON or Parquet."""
    from llmxai.report.export import export as write

    written = write(folder, file, table=rows)
    typer.echo(f"rows: {written}")
    typer.echo(f"table: {file}")
