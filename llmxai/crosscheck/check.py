"""Compare both families of methods for every generated token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmxai.crosscheck.agreement import NOTHING, compare, corrected
from llmxai.crosscheck.referee import verdicts
from llmxai.crosscheck.verdict import RULE, Rule, attention_verdict, sources_verdict
from llmxai.methods import Target
from llmxai.methods.attention.dilution import dilutions
from llmxai.types import Agreement, CrossCheck, Dilution, Effects, Generation, RefereeVerdict, Scores


def cross_check(
    generation: Generation,
    targets: Sequence[Target],
    *,
    gradients: Scores,
    rollout: Scores,
    variant: Scores,
    deletion: Scores | None = None,
    effects: Effects | None = None,
    rule: Rule = RULE,
) -> tuple[CrossCheck, ...]:
    """The verdict of every target, and the figures of both families behind it.

    The sources are judged by `deletion` where it is defined for the model, else by `gradients`; attention by plain
    `rollout`. Rollout and its variant are also compared with |integrated gradients| over each target's features, and
    the referee says which method better predicts the removals in `effects`.
    """
    judged = gradients if deletion is None or deletion.refused is not None else deletion
    plain, other = (_agreements(generation, targets, gradients, scores, rule) for scores in (rollout, variant))
    dilution, other_dilution = (_dilutions(targets, gradients, scores) for scores in (rollout, variant))
    ruled: tuple[RefereeVerdict | None, ...] = (None,) * len(targets)
    if effects is not None:
        compared = {one.method: one.values for one in (gradients, rollout) if one.refused is None}
        others = {one.method: one.values for one in (variant, deletion) if one is not None and one.refused is None}
        ruled = verdicts(effects, compared | others, rule=rule)
    checks = []
    for t, target in enumerate(targets):
        status, reason = sources_verdict(generation, judged, effects, t, target=target, rule=rule)
        attention, why = attention_verdict(dilution[t], rule=rule)
        checks.append(
            CrossCheck(
                status=status,
                reason=reason,
                attention=attention,
                attention_reason=why,
                agreement=plain[t],
                dilution=dilution[t],
                variant_agreement=other[t],
                variant_dilution=other_dilution[t],
                verdict=ruled[t],
            )
        )
    return tuple(checks)


def _dilutions(targets: Sequence[Target], gradients: Scores, scores: Scores) -> tuple[Dilution, ...] | tuple[None, ...]:
    if scores.refused is not None:
        return (None,) * len(targets)
    return dilutions(scores, gradients.features, torch.tensor([target.last for target in targets]) + 1)


def _agreements(
    generation: Generation, targets: Sequence[Target], gradients: Scores, scores: Scores, rule: Rule
) -> tuple[Agreement, ...]:
    if scores.refused is not None:
        return (NOTHING,) * len(targets)
    found = []
    for t, target in enumerate(targets):
        features = np.flatnonzero(gradients.features[t].numpy())
        sizes = gradients.values[t].abs().double().numpy()[features]
        row = scores.values[t].double().numpy()[features]
        near = np.abs(features - generation.read_at[0]) if generation.read_at else target.last - features
        found.append(compare(sizes, row, near, top_k=rule.top_k))
    return corrected(found)
