"""Both families of methods side by side, for every generated token."""

from __future__ import annotations

import numpy as np

from llmxai.crosscheck.agreement import NOTHING, compare, corrected
from llmxai.crosscheck.referee import verdicts
from llmxai.crosscheck.status import RULE, Certificate, Rule, status_alone, status_of
from llmxai.methods.attention.dilution import dilutions
from llmxai.types import (
    Agreement,
    Attribution,
    CrossCheck,
    Dilution,
    Effects,
    Generation,
    RefereeVerdict,
    Rollout,
    predicting_position,
)


def cross_check(
    generation: Generation,
    attribution: Attribution,
    rollout: Rollout,
    variant: Rollout,
    ablations: Effects | None = None,
    *,
    rule: Rule = RULE,
) -> tuple[CrossCheck, ...]:
    """Compare rollout, and the variant beside it, with |integrated gradients| over each target's features.

    The status is about plain `rollout`, and `unchecked` where that is refused. With `ablations`, every target carries
    the referee's verdict.
    """
    positions = [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]
    plain, beside = (_agreements(generation, attribution, rows, positions, rule) for rows in (rollout, variant))
    dilution, dilution_beside = (_dilutions(attribution, rows, positions) for rows in (rollout, variant))
    ruled: tuple[RefereeVerdict | None, ...] = (None,) * len(positions)
    if ablations is not None:
        rolled = {one.method: one.rows for one in (rollout, variant) if one.refused is None}
        beside_gradients = rolled if rollout.refused is None else {}
        ruled = verdicts(ablations, {attribution.method: attribution.values} | beside_gradients, rule=rule)
    checks = []
    for t in range(len(positions)):
        certificate = Certificate(
            converged=attribution.converged[t],
            local_error=float(attribution.local_error[t]),
            tolerance=float(attribution.tolerance[t]),
        )
        if (own := dilution[t]) is None:
            status, reason = status_alone(certificate, ruled[t])
        else:
            status, reason = status_of(
                certificate,
                plain[t],
                own,
                variant=beside[t],
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
                variant_agreement=beside[t],
                variant_dilution=dilution_beside[t],
                verdict=ruled[t],
            )
        )
    return tuple(checks)


def _dilutions(
    attribution: Attribution, rollout: Rollout, positions: list[int]
) -> tuple[Dilution, ...] | tuple[None, ...]:
    if rollout.refused is not None:
        return (None,) * len(positions)
    return dilutions(rollout, attribution.features, positions)


def _agreements(
    generation: Generation, attribution: Attribution, rollout: Rollout, positions: list[int], rule: Rule
) -> tuple[Agreement, ...]:
    if rollout.refused is not None:
        return (NOTHING,) * len(positions)
    found = []
    for t, position in enumerate(positions):
        features = np.flatnonzero(attribution.features[t].numpy())
        gradients = attribution.values[t].abs().double().numpy()[features]
        row = rollout.rows[t].double().numpy()[features]
        near = np.abs(features - generation.read_at[0]) if generation.read_at else position - features
        found.append(compare(gradients, row, near, top_k=rule.top_k))
    return corrected(found)
