"""Run any method of the table on one case, and bring what it gives into one form: a score a feature, with its cost."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import RecipeError, did_you_mean
from llmxai.evaluation.case import Case
from llmxai.methods import METHODS, TokenScores
from llmxai.models import LoadedModel
from llmxai.types import Attribution, Rollout

FILLED_IN = frozenset({"targets", "progress", "tolerance", "compute", "ablation"})
"""Parameters of methods that are no options of a recipe."""


@dataclass(frozen=True)
class Scored:
    """One method on one case."""

    scores: Float[Tensor, " feature"]
    """float64, over the case's features; larger speaks more for the target."""
    seconds: float
    converged: bool | None
    """Whether the method's certificate holds; None for a method that gives none."""
    nodes: int | None
    """Gradient nodes spent; None where the method does not count them."""


def method_options(name: str) -> dict[str, Any]:
    """The options of a method that a recipe may set, with their defaults."""
    parameters = inspect.signature(METHODS[name].function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in FILLED_IN}


def require_method(name: str, options: Mapping[str, Any], *, where: str) -> None:
    """Raise RecipeError for a method or an option that does not exist, with the nearest one that does."""
    if name not in METHODS:
        raise RecipeError(
            f"{where}: unknown method {name!r}.{did_you_mean(name, METHODS)} Known: {', '.join(sorted(METHODS))}."
        )
    known = method_options(name)
    for option in options:
        if option not in known:
            raise RecipeError(
                f"{where}: method {name!r} has no option {option!r}.{did_you_mean(option, known)} It has: "
                f"{', '.join(known) or 'none'}."
            )


def score_case(loaded: LoadedModel, case: Case, name: str, options: Mapping[str, Any]) -> Scored:
    """One score a feature of the case, by the method `name` of the table."""
    function = METHODS[name].function
    aimed = {"targets": (case.target,)} if "targets" in inspect.signature(function).parameters else {}
    start = time.perf_counter()
    result = function(loaded, case.generation, **aimed, **options)
    seconds = time.perf_counter() - start
    places = list(case.features)
    if isinstance(result, Attribution):
        return Scored(result.values[0, places].double(), seconds, result.converged[0], result.nodes[0])
    if isinstance(result, TokenScores):
        return Scored(result.values[0, places].double(), seconds, None, None)
    if isinstance(result, Rollout):
        rows = result.rows[list(case.t)] if len(result.rows) > 1 or not aimed else result.rows
        return Scored(rows.double().mean(dim=0)[places], seconds, None, None)
    raise TypeError(f"{name} gave a {type(result).__name__}, which holds no scores of tokens")


def as_shares(scores: Float[Tensor, " feature"]) -> Float[Tensor, " feature"]:
    """Scores moved and scaled to [0, 1]: least 0, most 1; all 1/2 where they are equal."""
    low, high = scores.min(), scores.max()
    return torch.full_like(scores, 0.5) if high == low else (scores - low) / (high - low)
