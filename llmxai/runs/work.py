"""One row from beginning to end: answer, explain, measure. What goes wrong becomes the row's own record."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from llmxai.errors import EvidenceError, OutputError, UserError
from llmxai.evaluation import Bench, Competitor, Row, answer_row, make_case, measure
from llmxai.evidence import recording
from llmxai.evidence.verifier.folder import LOG
from llmxai.explain import explain
from llmxai.generation import Decoding
from llmxai.methods import Tolerance
from llmxai.models import LoadedModel
from llmxai.runs.data import FailedRow
from llmxai.runs.ledger import Ledger
from llmxai.runs.recipe import EvaluateSettings, Recipe
from llmxai.save import save
from llmxai.types import Explanation, Generation, Status

EVIDENCE = "evidence"
"""The folder of a run's log."""
PREVIEW = 240
"""Characters of a prompt that stand in its row."""


@dataclass(frozen=True)
class Worker:
    """What all rows share."""

    loaded: LoadedModel
    recipe: Recipe
    bench: Bench | None

    @classmethod
    def of(cls, loaded: LoadedModel, recipe: Recipe) -> Worker:
        bench = None if recipe.evaluate is None else _bench(loaded, recipe.evaluate)
        return cls(loaded=loaded, recipe=recipe, bench=bench)

    def do(self, row: Row | FailedRow, *, key: str, run: Path, ledger: Ledger) -> None:
        """Do the row's work, leave its record and its evidence in the run's folder, and enter it into the ledger.

        Raises OutputError and EvidenceError: where nothing can be kept, going on makes no sense.
        """
        started = time.perf_counter()
        told: dict[str, Any] = {"id": row.id, "source": row.source, "key": key, "status": "ok", "error": ""}
        if isinstance(row, FailedRow):
            ledger.commit(row.id, told | {"status": "failed", "error": row.error, "seconds": 0.0})
            return
        told |= {"prompt": _preview(row.text), "fields": dict(row.fields)}
        try:
            if self.recipe.explain is None:
                told |= self._evaluated(row, answer_row(self.loaded, row, decoding=self._decoding))
            else:
                purpose = f"recipe {self.recipe.name}, row {row.id}"
                with recording(run / EVIDENCE, entry="recipe", purpose=purpose) as attempt:
                    attempt.request = _request(row)
                    explanation = self._explained(row)
                    told |= _summary(explanation) | self._evaluated(row, explanation.generation)
                    ledger.prepare(row.id, told | {"seconds": time.perf_counter() - started})
                    save(explanation, run / "records" / row.id, attempt=attempt)
                ledger.commit_prepared(row.id)
                return
        except (OutputError, EvidenceError):
            raise
        except UserError as error:
            told |= {"status": "failed", "error": str(error)}
        except Exception as error:  # a row's failure must never be the end of the run
            told |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        ledger.commit(row.id, told | {"seconds": time.perf_counter() - started})

    @property
    def _decoding(self) -> Decoding:
        return Decoding(**self.recipe.decoding.model_dump())

    def _explained(self, row: Row) -> Explanation:
        settings = self.recipe.explain
        assert settings is not None
        return explain(
            self.loaded,
            row.prompt,
            messages=row.messages,
            response=row.response,
            decoding=self._decoding,
            features=settings.features,
            baseline=settings.baseline,
            tolerance=Tolerance(relative=settings.tolerance),
            max_nodes=settings.max_nodes,
        )

    def _evaluated(self, row: Row, generation: Generation) -> dict[str, Any]:
        answer = _preview("".join(generation.texts[generation.prompt_len :]))
        told: dict[str, Any] = {"answer": answer, "n_targets": generation.n_targets}
        if self.bench is not None and self.recipe.evaluate is not None:
            case = make_case(self.loaded, row, generation, target=self.recipe.evaluate.target)
            compared = measure(self.bench, case)
            told |= {"target_f": compared.f, "measured": [asdict(measured) for measured in compared.measured]}
        return told


def in_evidence(run: Path, row_id: str) -> bool:
    """Whether the run's log holds a record of the files that stand in the row's folder."""
    try:
        digest = hashlib.sha256((run / "records" / row_id / "explanation.json").read_bytes()).hexdigest()
        return digest.encode() in (run / EVIDENCE / LOG).read_bytes()
    except OSError:
        return False


def _request(row: Row) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": row.prompt} if row.messages is None else {"messages": list(row.messages)}
    return asked if row.response is None else asked | {"response": row.response}


def _bench(loaded: LoadedModel, settings: EvaluateSettings) -> Bench:
    return Bench(
        loaded=loaded,
        competitors=[Competitor(c.name, c.method, c.options) for c in settings.methods],
        metrics=settings.metrics,
        operator=settings.removal,
        masks=settings.masks,
        samples=settings.samples,
        points=settings.points,
        seed=settings.seed,
    )


def _summary(explanation: Explanation) -> dict[str, Any]:
    attribution, statuses = explanation.attribution, [check.status for check in explanation.checks]
    agreements = [value for check in explanation.checks if (value := _spearman(check)) is not None]
    return {
        **{str(status): statuses.count(status) for status in Status},
        "worst_gap_ratio": float((attribution.local_error / attribution.tolerance).max()),
        "median_spearman": median(agreements) if agreements else None,
    }


def _spearman(check: Any) -> float | None:
    agreement = getattr(check, "agreement", check)
    value = agreement.spearman
    return None if value is None else float(value)


def _preview(text: str) -> str:
    return text if len(text) <= PREVIEW else text[: PREVIEW - 1] + "…"
