"""Compare both families of methods for every generated token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmxai.crosscheck.agreement import NOTHING, compare, corrected
from llmxai.crosscheck.referee import verdicts
from llmxai.crosscheck.status import RULE, Rule, TargetError, status_alone, status_of
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
    effects: Effects | None = None,
    rule: Rule = RULE,
) -> tuple[CrossCheck, ...]:
    """Compare rollout, and the variant, with |integrated gradients| over each target's features.

    The status is about plain `rollout`; it is `unchecked` if rollout is refused. With `effects`, every target gets the
    referee's verdict.
    """
    assert gradients.certificate is not None
    plain, other = (_agreements(generation, targets, gradients, scores, rule) for scores in (rollout, variant))
    dilution, other_dilution = (_dilutions(targets, gradients, scores) for scores in (rollout, variant))
    ruled: tuple[RefereeVerdict | None, ...] = (None,) * len(targets)
    if effects is not None:
        rolled = {one.method: one.values for one in (rollout, variant) if one.refused is None}
        compared = rolled if rollout.refused is None else {}
        ruled = verdicts(effects, {gradients.method: gradients.values} | compared, rule=rule)
    checks = []
    for t in range(len(targets)):
        error = TargetError.of(gradients.certificate, t)
        if (own := dilution[t]) is None:
            status, reason = status_alone(error, ruled[t])
        else:
            status, reason = status_of(
                error,
                plain[t],
                own,
                variant=other[t],
                variant_name=variant.method,
                verdict=ruled[t],
                rule=rule,
                falls="log-prob" if generation.foil_of(t) is None else "lead over the foil",
            )
        checks.append(
            CrossCheck(
                status=status,
                reason=reason,
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
