"""All methods on one case, the controls always among them: figures by method, and what each cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import UserError
from llmxai.evaluation.case import Case
from llmxai.evaluation.contenders import Scored, score_case
from llmxai.evaluation.faithfulness import aopc, curves, infidelity, lds, planted_truth, soft_faithfulness, top_k_drop
from llmxai.evaluation.sanity import max_sensitivity, randomisation, randomised
from llmxai.methods.perturbation.removal import SetFunction
from llmxai.models import LoadedModel

METRICS = ("planted", "aopc", "soft", "curves", "top_k", "lds", "infidelity", "max_sensitivity", "randomisation")

BETTER = {
    "mrr": 1,
    "mrr_abs": 1,
    "precision": 1,
    "precision_abs": 1,
    "comprehensiveness": 1,
    "sufficiency": -1,
    "soft_nc": 1,
    "soft_ns": 1,
    "deletion_auc": -1,
    "insertion_auc": 1,
    "top_1_drop": 1,
    "top_3_drop": 1,
    "top_5_drop": 1,
    "lds": 1,
    "infidelity": -1,
    "max_sensitivity": -1,
    "randomised_spearman": -1,
    "emprt": 1,
}
"""Every figure: 1 where larger is better, -1 where smaller is."""


@dataclass(frozen=True)
class Competitor:
    """A method of the table with its options, under the name it has in the results."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One competitor on one case."""

    name: str
    figures: Mapping[str, float]
    """By figure (see `BETTER`); a figure that is not defined here is absent."""
    seconds: float
    """Wall time of the method itself, metrics not counted."""
    converged: bool | None
    nodes: int | None
    error: str = ""
    """Why there is no figure: the method does not apply to this model, or its numbers were not finite."""


@dataclass(frozen=True)
class Comparison:
    """Every competitor and control on one case."""

    f: float
    """F of the case with nothing removed: log-prob in nats, or a contrast of logits. How sure the model is of it."""
    measured: tuple[Measured, ...]


@dataclass
class EvaluationContext:
    """A model with what all its cases share: the settings, and the copy with random weights once it is wanted."""

    loaded: LoadedModel
    competitors: Sequence[Competitor]
    metrics: Sequence[str]
    operator: str = "delete"
    masks: int = 32
    samples: int = 8
    points: int = 10
    seed: int = 0
    _random_weights: LoadedModel | None = None

    def random_weights(self) -> LoadedModel:
        """The randomised copy, made once."""
        if self._random_weights is None:
            self._random_weights = randomised(self.loaded, seed=self.seed)
        return self._random_weights


CONTROLS = (Competitor("random", "random"), Competitor("recency", "recency"))
LEAVE_ONE_OUT = "leave_one_out"


def measure(bench: EvaluationContext, case: Case) -> Comparison:
    """Every competitor and control on one case, over one set of removals."""
    removal = SetFunction(bench.loaded, case.generation, case.target, case.features, bench.operator)
    f = removal.full()
    found = [_measured(bench, case, removal, competitor) for competitor in (*bench.competitors, *CONTROLS)]
    return Comparison(f=f, measured=(*found, _leave_one_out(bench, case, removal)))


def _measured(bench: EvaluationContext, case: Case, removal: SetFunction, competitor: Competitor) -> Measured:
    def score(loaded: LoadedModel) -> Scored:
        return score_case(loaded, case, competitor.method, competitor.options)

    try:
        scored = score(bench.loaded)
    except UserError as error:
        return Measured(competitor.name, {}, 0.0, None, None, error=str(error))
    figures = _figures(bench, case, removal, scored.scores)
    if "max_sensitivity" in bench.metrics and competitor.method not in ("random", "recency"):
        figures |= max_sensitivity(
            bench.loaded, case.generation, lambda: score(bench.loaded).scores, samples=bench.samples, seed=bench.seed
        )
    if "randomisation" in bench.metrics:
        figures |= randomisation(scored.scores, score(bench.random_weights()).scores)
    return Measured(competitor.name, figures, scored.seconds, scored.converged, scored.nodes)


def _leave_one_out(bench: EvaluationContext, case: Case, removal: SetFunction) -> Measured:
    """Its own measure of time: nothing of what was removed before is reused."""
    again = SetFunction(bench.loaded, case.generation, case.target, case.features, bench.operator)
    start = time.perf_counter()
    scores = leave_one_out_scores(again)
    seconds = time.perf_counter() - start
    removal.known.update(again.known)
    figures = _figures(bench, case, removal, scores)
    if "randomisation" in bench.metrics:
        other = SetFunction(bench.random_weights(), case.generation, case.target, case.features, bench.operator)
        figures |= randomisation(scores, leave_one_out_scores(other))
    return Measured(LEAVE_ONE_OUT, figures, seconds, None, None)


def leave_one_out_scores(removal: SetFunction) -> Float[Tensor, " feature"]:
    """How far F falls without each single feature, under the removal's own operator and target."""
    n = len(removal.features)
    return removal.full() - removal.values(~torch.eye(n, dtype=torch.bool))


def _figures(
    bench: EvaluationContext, case: Case, removal: SetFunction, scores: Float[Tensor, " feature"]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    if "planted" in bench.metrics and case.truth is not None:
        figures |= planted_truth(scores, case.truth)
    if "aopc" in bench.metrics:
        figures |= aopc(removal, scores)
    if "soft" in bench.metrics:
        figures |= soft_faithfulness(removal, scores, samples=bench.samples, seed=bench.seed)
    if "curves" in bench.metrics:
        figures |= curves(removal, scores, points=bench.points)
    if "top_k" in bench.metrics:
        figures |= top_k_drop(removal, scores)
    if "lds" in bench.metrics:
        figures |= lds(removal, scores, masks=bench.masks, seed=bench.seed)
    if "infidelity" in bench.metrics:
        figures |= infidelity(removal, scores, masks=bench.masks, seed=bench.seed)
    return figures
