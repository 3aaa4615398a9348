"""All methods on one case, including the controls: figures and costs by method."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import UserError
from llmxai.evaluation.case import Case
from llmxai.evaluation.metrics import (
    aopc,
    curves,
    infidelity,
    lds,
    max_sensitivity,
    planted_truth,
    randomisation,
    randomised,
    soft_faithfulness,
    source_ranks,
    top_k_drop,
)
from llmxai.methods import METHODS
from llmxai.methods.perturbation.removal import SetFunction
from llmxai.models import LoadedModel
from llmxai.models.precision import in_precision
from llmxai.types import Scores

METRICS = (
    *("planted", "sources", "aopc", "soft", "curves", "top_k", "lds", "infidelity", "max_sensitivity"),
    "randomisation",
)

BETTER = {
    "mrr": 1,
    "mrr_abs": 1,
    "mrr_sentence": 1,
    "mrr_document": 1,
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
"""All figures: 1 if larger is better, -1 if smaller is."""


@dataclass(frozen=True)
class Competitor:
    """A method of the table with its options, and its name in the results."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One competitor on one case."""

    name: str
    figures: Mapping[str, float]
    """By figure (see `BETTER`); undefined figures are absent."""
    seconds: float
    """Wall time of the method itself, without the metrics."""
    converged: bool | None
    nodes: int | None
    error: str = ""
    """Why there are no figures: the method does not apply to this model, or its numbers were not finite."""


@dataclass(frozen=True)
class Comparison:
    """Every competitor and control on one case."""

    f: float
    """F of the case with nothing removed (log-prob in nats, or a contrast of logits): how sure the model is."""
    measured: tuple[Measured, ...]


@dataclass
class EvaluationContext:
    """A model and what all its cases share: the settings, and a copy with random weights when needed."""

    loaded: LoadedModel
    competitors: Sequence[Competitor]
    metrics: Sequence[str]
    operator: str = "delete"
    masks: int = 32
    samples: int = 8
    points: int = 10
    seed: int = 0
    precision: str = "float32"
    """What a model that is stored in less computes in: see `Compute.precision`."""
    _random_weights: LoadedModel | None = None

    def random_weights(self) -> LoadedModel:
        """The randomised copy, created once."""
        if self._random_weights is None:
            self._random_weights = randomised(self.loaded, seed=self.seed)
        return self._random_weights


LEAVE_ONE_OUT = "leave_one_out"
CHANCE = (Competitor("random", "random"), Competitor("recency", "recency"))
MOST_LEFT_OUT = 512
"""Tokens that the control leaves out one by one, at most: each takes a forward pass."""
CONTROLS = (*CHANCE, Competitor(LEAVE_ONE_OUT, LEAVE_ONE_OUT))


def measure(context: EvaluationContext, case: Case) -> Comparison:
    """Every competitor and control on one case, over one set of removals.

    The controls (random, recency, leave_one_out) are measured once, even if they are among the competitors.
    """
    if "randomisation" in context.metrics:
        context.random_weights()  # before the loaded weights are widened, and kept for the next case
    with in_precision(context.loaded, context.precision) as loaded:
        return _compared(replace(context, loaded=loaded), case)


def _compared(context: EvaluationContext, case: Case) -> Comparison:
    """The comparison in the precision of the context's model."""
    removal = SetFunction(context.loaded, case.generation, case.target, case.features, context.operator)
    f = removal.full()
    asked = [one for one in context.competitors if one not in CONTROLS]
    found = [_measured(context, case, removal, competitor) for competitor in (*asked, *CHANCE)]
    return Comparison(f=f, measured=(*found, _leave_one_out(context, case, removal)))


def _measured(context: EvaluationContext, case: Case, removal: SetFunction, competitor: Competitor) -> Measured:
    def scores_of(loaded: LoadedModel) -> Scores:
        function = METHODS[competitor.method].function
        return function(loaded, case.generation, targets=(case.target,), **competitor.options)

    def on_features(scores: Scores) -> Float[Tensor, " feature"]:
        return scores.values[0, list(case.features)].double()

    start = time.perf_counter()
    try:
        scores = scores_of(context.loaded)
    except UserError as error:
        return Measured(competitor.name, {}, 0.0, None, None, error=str(error))
    seconds = time.perf_counter() - start
    figures = _figures(context, case, removal, on_features(scores))
    if "max_sensitivity" in context.metrics and competitor.method not in ("random", "recency"):
        figures |= max_sensitivity(
            context.loaded,
            case.generation,
            lambda: on_features(scores_of(context.loaded)),
            samples=context.samples,
            seed=context.seed,
        )
    if "randomisation" in context.metrics:
        with in_precision(context.random_weights(), context.precision) as other:
            figures |= randomisation(on_features(scores), on_features(scores_of(other)))
    certificate = scores.certificate
    return Measured(
        competitor.name,
        figures,
        seconds,
        converged=None if certificate is None else certificate.converged[0],
        nodes=None if certificate is None else certificate.nodes[0],
    )


def _leave_one_out(context: EvaluationContext, case: Case, removal: SetFunction) -> Measured:
    """Token by token, and timed by itself: no earlier removals are reused. Not of a long prompt."""
    if len(case.features) > MOST_LEFT_OUT:
        said = f"The prompt has {len(case.features)} tokens of content; of more than {MOST_LEFT_OUT} none is left out."
        return Measured(LEAVE_ONE_OUT, {}, 0.0, None, None, error=said)
    again = SetFunction(context.loaded, case.generation, case.target, case.features, context.operator)
    start = time.perf_counter()
    scores = leave_one_out_scores(again)
    seconds = time.perf_counter() - start
    removal.known.update(again.known)
    figures = _figures(context, case, removal, scores)
    if "randomisation" in context.metrics:
        with in_precision(context.random_weights(), context.precision) as other:
            drops = SetFunction(other, case.generation, case.target, case.features, context.operator)
            figures |= randomisation(scores, leave_one_out_scores(drops))
    return Measured(LEAVE_ONE_OUT, figures, seconds, None, None)


def leave_one_out_scores(removal: SetFunction) -> Float[Tensor, " feature"]:
    """The drop in F without each single feature, with the removal's own operator and target."""
    n = len(removal.features)
    return removal.full() - removal.values(~torch.eye(n, dtype=torch.bool))


def _figures(
    context: EvaluationContext, case: Case, removal: SetFunction, scores: Float[Tensor, " feature"]
) -> dict[str, float]:
    figures: dict[str, float] = {}
    if "planted" in context.metrics and case.truth is not None:
        figures |= planted_truth(scores, case.truth)
    if "sources" in context.metrics and case.truth is not None:
        figures |= source_ranks(scores, case.truth, case.features, case.generation)
    if "aopc" in context.metrics:
        figures |= aopc(removal, scores)
    if "soft" in context.metrics:
        figures |= soft_faithfulness(removal, scores, samples=context.samples, seed=context.seed)
    if "curves" in context.metrics:
        figures |= curves(removal, scores, points=context.points)
    if "top_k" in context.metrics:
        figures |= top_k_drop(removal, scores)
    if "lds" in context.metrics:
        figures |= lds(removal, scores, masks=context.masks, seed=context.seed)
    if "infidelity" in context.metrics:
        figures |= infidelity(removal, scores, masks=context.masks, seed=context.seed)
    return figures
