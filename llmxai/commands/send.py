"""`llmxai send`: results in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

send = typer.Typer(no_args_is_help=True, help="Give results to other tools: OpenTelemetry, MLflow, Inspect, Inseq.")

Folder = Annotated[Path, typer.Argument(help="Folder of an explanation.", show_default=False)]


@send.command("otel")
def otel(
    folder: Folder,
    traceparent: Annotated[str | None, typer.Option(help="W3C traceparent of the span that made the answer.")] = None,
    response_id: Annotated[str | None, typer.Option(help="The gen_ai.response.id of the answer.")] = None,
) -> None:
    """Emit gen_ai.evaluation.result events: `opentelemetry-instrument llmxai send otel` has a provider configured."""
    from llmxai.exchange.otel import emit

    typer.echo(f"events: {emit(folder, traceparent=traceparent, response_id=response_id)}")


@send.command("mlflow")
def mlflow(
    folder: Folder,
    trace: Annotated[str | None, typer.Option(help="Trace that gets the results as feedback.")] = None,
    run: Annotated[str | None, typer.Option(help="Run that gets metrics and the folder as artifacts.")] = None,
) -> None:
    """Log the results of an explanation to MLflow (MLFLOW_TRACKING_URI says where)."""
    from llmxai.exchange.mlflow import log

    typer.echo(f"results: {log(folder, trace_id=trace, run_id=run)}")


@send.command("inspect")
def inspect(
    run: Annotated[Path, typer.Argument(help="Folder of a run whose data is an Inspect log.", show_default=False)],
    log: Annotated[Path, typer.Argument(help="That log, an .eval file.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Log to write: a copy with the scores.", show_default=False)],
) -> None:
    """Write a copy of an Inspect log with the results of a run as scores of its samples."""
    from llmxai.exchange.inspect import write_scores

    typer.echo(f"samples: {write_scores(log, run, out)}")
    typer.echo(f"log: {out}")


@send.command("inseq")
def inseq(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="JSON file to write.", show_default=False)],
    method: Annotated[str | None, typer.Option(help="Whose scores. Default: the deletion path.")] = None,
) -> None:
    """Write an explanation as Inseq's JSON, for inseq.FeatureAttributionOutput.load."""
    from llmxai.errors import OutputError
    from llmxai.exchange.inseq import to_inseq

    text = to_inseq(folder, method=method)
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error}). Choose another file.") from error
    typer.echo(f"json: {out}")
