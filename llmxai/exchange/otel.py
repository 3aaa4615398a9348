"""Results as OpenTelemetry events: `gen_ai.evaluation.result` of the GenAI semantic conventions (in development).

https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-events.md
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmxai.exchange import missing, results_of
from llmxai.store import read_folder

EVENT = "gen_ai.evaluation.result"


def emit(
    folder: Path | str, *, response_id: str | None = None, traceparent: str | None = None, provider: Any = None
) -> int:
    """Emit one event per result of the explanation in a folder; return how many.

    `traceparent`: the W3C header of the span that made the answer, which the events then belong to. `response_id`: the
    `gen_ai.response.id` of the answer, where its span is not known. `provider`: a logger provider; by default the
    global one, which an application (or `opentelemetry-instrument`) has configured.

    >>> emit("runs/france", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

    Raises OptionError without opentelemetry-api, and OutputError for a folder without an explanation.
    """
    document, _ = read_folder(folder)
    try:
        from opentelemetry._logs import LogRecord, SeverityNumber, get_logger
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        raise missing("opentelemetry-api", "otel", error) from error
    context = None if traceparent is None else TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    logger = get_logger("llmxai", version("llmxai"), provider)
    results = results_of(document)
    for result in results:
        attributes = {
            "gen_ai.evaluation.name": result.name,
            "gen_ai.evaluation.score.value": result.value,
            "gen_ai.evaluation.score.label": result.label,
            "gen_ai.evaluation.explanation": result.explanation,
        }
        if response_id is not None:
            attributes["gen_ai.response.id"] = response_id
        logger.emit(
            LogRecord(
                event_name=EVENT,
                context=context,
                severity_number=SeverityNumber.INFO,
                attributes=attributes,
            )
        )
    return len(results)
