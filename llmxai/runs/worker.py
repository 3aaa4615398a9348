"""One row from start to end: answer, explain, evaluate. An error becomes the row's own record."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llmxai.errors import EvidenceError, OutputError, RecipeError, UserError
from llmxai.evaluation import Competitor, EvaluationContext, Row, make_case, measure
from llmxai.evidence import Attempt, Draft, drafting, evaluated
from llmxai.explain import explain
from llmxai.explanation import Explanation
from llmxai.generation import answer, chat_inputs, encode
from llmxai.methods import require_method
from llmxai.models import LoadedModel
from llmxai.models.identity import environment_of
from llmxai.names import CURRENT
from llmxai.report import summarize
from llmxai.runs.data import FailedRow
from llmxai.runs.ledger import MARK, Ledger
from llmxai.runs.recipe import EvaluateSettings, Recipe
from llmxai.runs.scheduling import Job
from llmxai.save import save
from llmxai.types import Generation

_HOST = platform.node()
EVIDENCE = "evidence"
"""The folder of a run's log."""
PREVIEW = 240
"""Characters of a prompt that its row shows."""


@dataclass(frozen=True)
class Worker:
    """Processes rows: writes their files and prepares their entries. Only the `RunWriter` writes the log."""

    loaded: LoadedModel
    recipe: Recipe
    evaluation: EvaluationContext | None
    run: Path
    signed_by: str | None
    """Id of the key that the log is signed with."""
    marked: bool = False
    """Whether the folder has the mark of a run, which must not go while rows are processed."""

    @classmethod
    def of(cls, loaded: LoadedModel, recipe: Recipe, *, run: Path, signed_by: str | None) -> Worker:
        evaluation = None if recipe.evaluate is None else _context(loaded, recipe.evaluate)
        marked = (run / MARK).exists()
        return cls(loaded=loaded, recipe=recipe, evaluation=evaluation, run=run, signed_by=signed_by, marked=marked)

    def do(self, job: Job) -> None:
        """Process the row, write its files into the run's folder and prepare its entry and its record.

        Raises OutputError and EvidenceError: if nothing can be stored, continuing makes no sense.
        """
        started, row, ledger = time.perf_counter(), job.row, Ledger(self.run, marked=self.marked)
        ledger.require_run()
        told: dict[str, Any] = {"id": row.id, "source": row.source, "key": job.key, "attempt": job.record}
        told |= {"status": "ok", "error": ""}
        if isinstance(row, Row):
            told |= {"prompt": _preview(row.text), "fields": dict(row.fields)}
        attempt: Attempt | None = None
        try:
            purpose = f"recipe {self.recipe.name}, row {row.id}"
            place = self.run / EVIDENCE
            with drafting(place, id=job.record, entry="recipe", purpose=purpose, signed_by=self.signed_by) as attempt:
                told |= self._kept(row, attempt)
        except (OutputError, EvidenceError, KeyboardInterrupt, SystemExit):
            if attempt is not None and attempt.draft is not None:
                with contextlib.suppress(OutputError):
                    ledger.abort(row.id, attempt.draft)
            raise
        except UserError as error:
            told |= {"status": "failed", "error": str(error)}
        except Exception as error:  # one failed row must not end the run
            told |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        draft = None if attempt is None else attempt.draft
        told |= _evidence(draft) | {"seconds": time.perf_counter() - started, "worker": f"{_HOST}:{os.getpid()}"}
        ledger.prepare(row.id, told, draft)

    def _kept(self, row: Row | FailedRow, attempt: Attempt) -> dict[str, Any]:
        """Explain the row and write its folder; return the figures of its entry."""
        row = _whole(row)
        attempt.request = request_of(row)
        if self.recipe.explain is None:
            asked = encode(self.loaded, row.asked, chat_inputs(**row.given))
            generation = answer(self.loaded, asked, response=row.response, decoding=self.recipe.decoding)
            told = self._evaluated(row, generation)
            evaluated(attempt, generation, environment=environment_of(self.loaded))
            return told
        explanation = self._explained(row)
        told = _summary(explanation) | self._evaluated(row, explanation.generation)
        shown = summarize(explanation.to_dict(), record=row.id)
        told |= {"sources": shown.sources, "probability": shown.probability}
        Ledger(self.run, marked=self.marked).require_run()
        save(explanation, self.run / "records" / row.id, replace=True, attempt=attempt, run=self.run)
        return told

    def _explained(self, row: Row) -> Explanation:
        settings = self.recipe.explain
        assert settings is not None
        return explain(
            self.loaded,
            row.asked,
            **row.given,
            response=row.response,
            foil=row.foil,
            targets=self.recipe.targets if row.target is None else row.target,
            decoding=self.recipe.decoding,
            settings=settings,
        )

    def _evaluated(self, row: Row, generation: Generation) -> dict[str, Any]:
        said = _preview("".join(generation.texts[generation.prompt_len :]))
        told: dict[str, Any] = {
            "answer": said,
            "n_targets": generation.n_targets,
            "n_tokens": len(generation.ids),
        }
        if self.evaluation is not None and self.recipe.evaluate is not None:
            case = make_case(self.loaded, row, generation, target=self.recipe.evaluate.target)
            compared = measure(self.evaluation, case)
            told |= {"target_f": compared.f, "measured": [asdict(measured) for measured in compared.measured]}
        return told


def _whole(row: Row | FailedRow) -> Row:
    """The row; raises RecipeError for one that could not be built."""
    if isinstance(row, FailedRow):
        raise RecipeError(row.error)
    return row


def _evidence(draft: Draft | None) -> dict[str, Any]:
    """The record's columns in the run's table: its id, and the SHA-256 of its data files."""
    if draft is None:
        return {}
    digests = {Path(each.path).name: each.sha256 for each in draft.record.artefacts}
    return {
        "record": draft.record.id,
        "explanation_sha256": digests.get("explanation.json"),
        "maps_sha256": digests.get("maps.safetensors"),
    }


def request_of(row: Row) -> dict[str, Any]:
    """The request, as records and explanations store it."""
    asked: dict[str, Any] = {"prompt": row.prompt} if row.messages is None else {"messages": list(row.messages)}
    more = {"response": row.response, "foil": row.foil, **row.given}
    return asked | {name: value for name, value in more.items() if value is not None}


def _context(loaded: LoadedModel, settings: EvaluateSettings) -> EvaluationContext:
    return EvaluationContext(
        loaded=loaded,
        competitors=[Competitor(c.name, c.method, require_method(c.method, c.options)) for c in settings.methods],
        metrics=settings.metrics,
        operator=settings.removal,
        masks=settings.masks,
        samples=settings.samples,
        points=settings.points,
        seed=settings.seed,
        precision=settings.precision,
    )


def _summary(explanation: Explanation) -> dict[str, Any]:
    judged = explanation.gradients if explanation.deletion.refused is not None else explanation.deletion
    certificate, statuses = judged.certificate, [check.status for check in explanation.checks]
    assert certificate is not None
    agreements = [check.agreement.spearman for check in explanation.checks if check.agreement.spearman is not None]
    return {
        **{str(status): statuses.count(status) for status in CURRENT},
        "worst_gap_ratio": float((certificate.local_error / certificate.tolerance).max()),
        "oom_halvings": explanation.computed.get("chunk_halvings", 0),
        "median_spearman": median(agreements) if agreements else None,
    }


def _preview(text: str) -> str:
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"
