"""`llmxai report` and `llmxai table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmxai.commands.console import log, progress


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of an explanation or of a run.", show_default=False)],
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Also print the last page that is listed to a PDF (needs Chromium).")
    ] = False,
) -> None:
    """Rebuild the HTML pages of an explanation or a run from its stored data, without loading a model."""
    from llmxai.evidence import signing_key, vouched
    from llmxai.evidence.provenance import provenances_of, records_of
    from llmxai.report.export import find_chromium, write_pdf
    from llmxai.report.rebuild import rebuild

    if pdf:
        find_chromium()
    with vouched(folder, signer=signing_key()) as changing:
        with progress() as said:
            provenance = provenances_of(folder)
            done = rebuild(folder, provenance=provenance, records=records_of, report=said, changing=changing)
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
    file: Annotated[Path, typer.Argument(help="File to write: .csv or .parquet.", show_default=False)],
    rows: Annotated[
        str | None,
        typer.Option(help="records, tokens or sources. [default: tokens for an explanation, records for a run]"),
    ] = None,
) -> None:
    """Write the stored numbers of an explanation or a run as one flat table, CSV or Parquet."""
    from llmxai.report.export import export as write

    written = write(folder, file, table=rows)
    typer.echo(f"rows: {written}")
    typer.echo(f"table: {file}")
