"""Both families of methods side by side, for every generated token."""

from __future__ import annotations

import numpy as np

from llmxai.crosscheck.agreement import compare, corrected
from llmxai.crosscheck.dilution import dilutions
from llmxai.crosscheck.referee import verdicts
from llmxai.crosscheck.status import RULE, Certificate, Rule, status_of
from llmxai.types import (
    Ablations,
    Agreement,
    Attribution,
    CrossCheck,
    Generation,
    Rollout,
    Verdict,
    predicting_position,
)


def cross_check(
    generation: Generation,
    attribution: Attribution,
    rollout: Rollout,
    variant: Rollout,
    ablations: Ablations | None = None,
    *,
    rule: Rule = RULE,
) -> tuple[CrossCheck, ...]:
    """Compare rollout, and the variant beside it, with |integrated gradients| over each target's features.

    The status is about plain `rollout`. With `ablations`, every target carries the referee's verdict.
    """
    positions = [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]
    plain, beside = (_agreements(attribution, rows, positions, rule) for rows in (rollout, variant))
    dilution, dilution_beside = (dilutions(rows, attribution.features, positions) for rows in (rollout, variant))
    ruled: tuple[Verdict | None, ...] = (None,) * len(positions)
    if ablations is not None:
        ruled = verdicts(
            ablations,
            {attribution.method: attribution.values, rollout.method: rollout.rows, variant.method: variant.rows},
        )
    checks = []
    for t in range(len(positions)):
        status, reason = status_of(
            Certificate(
                converged=attribution.converged[t],
                local_error=float(attribution.local_error[t]),
                tolerance=float(attribution.tolerance[t]),
            ),
            plain[t],
            dilution[t],
            variant=beside[t],
            variant_name=variant.method,
            verdict=ruled[t],
            rule=rule,
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


def _agreements(attribution: Attribution, rollout: Rollout, positions: list[int], rule: Rule) -> tuple[Agreement, ...]:
    found = []
    for t, position in enumerate(positions):
        features = np.flatnonzero(attribution.features[t].numpy())
        gradients = attribution.values[t].abs().double().numpy()[features]
        row = rollout.rows[t].double().numpy()[features]
        found.append(compare(gradients, row, position - features, top_k=rule.top_k))
    return corrected(found)
