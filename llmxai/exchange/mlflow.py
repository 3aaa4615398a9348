"""Results in MLflow: as assessments of a trace, or as metrics and artifacts of a run."""

from __future__ import annotations

from pathlib import Path

from llmxai.errors import OptionError
from llmxai.exchange import missing, results_of
from llmxai.store import FILES, read_folder


def log(folder: Path | str, *, trace_id: str | None = None, run_id: str | None = None) -> int:
    """Log the results of the explanation in a folder; return how many.

    `trace_id`: each becomes a feedback on that trace. `run_id`: each becomes a metric of that run, and the folder's
    page, numbers and maps its artifacts below `llmxai/`. Where MLflow keeps them is its own setting
    (MLFLOW_TRACKING_URI).

    >>> log("runs/france", trace_id=mlflow.get_last_active_trace_id())

    Raises OptionError without MLflow or with neither of the two, and OutputError for a folder without an explanation.
    """
    if trace_id is None and run_id is None:
        raise OptionError("Nothing says where in MLflow the results belong. Give a trace id, a run id, or both.")
    folder = Path(folder)
    document, _ = read_folder(folder)
    try:
        from mlflow import MlflowClient, log_assessment
        from mlflow.entities import AssessmentSource, Feedback
    except ImportError as error:
        raise missing("mlflow", "mlflow", error) from error
    results = results_of(document)
    if trace_id is not None:
        source = AssessmentSource(source_type="CODE", source_id="llmxai")
        for result in results:
            feedback = Feedback(
                name=result.name,
                value=result.value,
                source=source,
                rationale=result.explanation,
                metadata={"label": result.label, "created": str(document["created"])},
            )
            log_assessment(trace_id, feedback)
    if run_id is not None:
        client = MlflowClient()
        for result in results:
            client.log_metric(run_id, result.name, result.value)
        for name in FILES:
            client.log_artifact(run_id, str(folder / name), artifact_path=f"llmxai/{folder.name}")
    return len(results)
