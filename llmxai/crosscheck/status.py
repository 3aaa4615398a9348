"""The status of one generated token, from both methods' figures, by a rule with a version."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmxai.crosscheck.agreement import spearman, top_k_overlap
from llmxai.crosscheck.dilution import jensen_shannon, normalised_entropy
from llmxai.types import Attribution, CrossCheck, Generation, Rollout, Status, predicting_position


@dataclass(frozen=True)
class Rule:
    """Thresholds of the status. Version 1 is a first choice by hand; it is not calibrated on planted truth yet."""

    version: int = 1
    least_divergence: float = 0.05
    """Bits from the uniform-causal null, below which rollout is diluted."""
    most_sink: float = 0.9
    """Share of the row on position 0, above which rollout is diluted."""
    significance: float = 0.05
    """One-sided p-value of the Spearman correlation, up to which the methods agree."""
    top_k: int = 5


RULE = Rule()


def cross_check(
    generation: Generation, attribution: Attribution, rollout: Rollout, *, rule: Rule = RULE
) -> tuple[CrossCheck, ...]:
    """Compare rollout with |integrated gradients| over each target's features and give it a status."""
    return tuple(_check(generation, attribution, rollout, t, rule) for t in range(generation.n_targets))


def _check(generation: Generation, attribution: Attribution, rollout: Rollout, t: int, rule: Rule) -> CrossCheck:
    features = attribution.features[t].numpy()
    gradients = attribution.values[t].abs().numpy()[features]
    row = rollout.rows[t].numpy()
    seen = predicting_position(generation.prompt_len, t) + 1
    rank = spearman(gradients, row[features])
    overlap = top_k_overlap(gradients, row[features], k=rule.top_k)
    divergence = jensen_shannon(row[:seen], rollout.null_rows[t].numpy()[:seen])
    status, reason = _status(
        converged=attribution.converged[t],
        gap=float(attribution.gap[t]),
        tolerance=float(attribution.tolerance[t]),
        divergence=divergence,
        sink=float(row[0]),
        rank=rank,
        rule=rule,
    )
    return CrossCheck(
        status=status,
        reason=reason,
        spearman=rank[0] if rank else None,
        spearman_p=rank[1] if rank else None,
        top_k=min(rule.top_k, int(np.count_nonzero(features))),
        top_k_overlap=overlap,
        sink_mass=float(row[0]),
        feature_mass=float(row[features].sum()),
        entropy=normalised_entropy(row[features]),
        null_divergence=divergence,
    )


def _status(
    *,
    converged: bool,
    gap: float,
    tolerance: float,
    divergence: float,
    sink: float,
    rank: tuple[float, float] | None,
    rule: Rule,
) -> tuple[Status, str]:
    if not converged:
        return Status.UNCONVERGED, (
            f"The gradient attribution misses completeness by {abs(gap):.3g} nats and {tolerance:.3g} is allowed: "
            f"do not read it here."
        )
    if sink > rule.most_sink:
        return Status.DILUTED, (
            f"Attention rollout puts {sink:.1%} of its mass on the first token: do not read attention here."
        )
    if divergence < rule.least_divergence:
        return Status.DILUTED, (
            f"Attention rollout is {divergence:.3f} bits from what the mask and the depth alone would give "
            f"({rule.least_divergence} is needed): do not read attention here."
        )
    if rank is None:
        return Status.DISAGREE, "Too few features, or a constant row, to compare the two methods."
    correlation, p = rank
    if p <= rule.significance:
        return Status.AGREE, (
            f"Both methods rank the sources alike: Spearman {correlation:.2f}, p = {p:.3g} against chance."
        )
    return Status.DISAGREE, (
        f"The two methods do not rank the sources alike: Spearman {correlation:.2f}, p = {p:.3g} against chance."
    )
