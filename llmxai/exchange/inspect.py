"""Scores for an Inspect log: what a run over its samples (`path: log.eval` in a recipe) found for each of them."""

from __future__ import annotations

from pathlib import Path

from llmxai.errors import OptionError, OutputError
from llmxai.exchange import missing, results_of
from llmxai.runs.data import eval_row
from llmxai.store import read_folder


def write_scores(log: Path | str, run: Path | str, out: Path | str) -> int:
    """Write a copy of an Inspect log with the results of a run as scores of its samples; return how many have some.

    Samples that the run did not explain are left as they are. Metrics over samples are left to `inspect score`.

    >>> write_scores("logs/capitals.eval", "runs/capitals", "logs/capitals-explained.eval")

    Raises OptionError without inspect-ai, and OutputError if the run explained none of the samples or `out` exists.
    """
    log, run, out = Path(log), Path(run), Path(out)
    if out.exists():
        raise OutputError(f"{out}: exists. Choose another file.")
    try:
        from inspect_ai.log import read_eval_log, write_eval_log
        from inspect_ai.scorer import Score
    except ImportError as error:
        raise missing("inspect-ai", "inspect", error) from error
    found = read_eval_log(str(log))
    scored = 0
    for sample in found.samples or []:
        folder = run / "records" / eval_row(sample.id, sample.epoch)
        if not (folder / "explanation.json").is_file():
            continue
        document, _ = read_folder(folder)
        scores = {
            result.name: Score(
                value=result.value,
                answer=result.label,
                explanation=result.explanation,
                metadata={"record": str(folder.relative_to(run)), "created": document["created"]},
            )
            for result in results_of(document)
        }
        sample.scores = {**(sample.scores or {}), **scores}
        scored += 1
    if not scored:
        raise OptionError(
            f"{run}: explained none of the samples of {log}. Expected a run of a recipe whose data is that log "
            f"(path: {log.name}, without an id template)."
        )
    write_eval_log(found, str(out))
    return scored
