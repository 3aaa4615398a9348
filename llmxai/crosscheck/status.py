"""The status of one generated token, by a rule with a version and calibrated thresholds (docs/crosscheck.md)."""

from __future__ import annotations

from dataclasses import dataclass

from llmxai.types import Agreement, Certificate, Dilution, RefereeVerdict, Status


@dataclass(frozen=True)
class Rule:
    """Thresholds of the status. Those of dilution come from `make calibrate`, which also checks the others."""

    version: int = 3
    most_sink: float = 0.55
    """Share of the row on position 0, above which rollout is diluted."""
    least_divergence: float = 0.007
    """Bits from the uniform-causal null, below which rollout is diluted."""
    significance: float = 0.05
    """Corrected p-value of the rank correlation, up to which the methods agree."""
    top_k: int = 5
    least_fall: float = 1.0
    """Nats by which F falls at least without a unit that counts as a source."""
    fall_share: float = 0.3
    """Share of the largest fall that a source must reach, too."""


RULE = Rule()
METHOD_WORDS = {"layer_integrated_gradients": "the gradients", "attention_rollout": "attention rollout"}


@dataclass(frozen=True)
class TargetError:
    """How far the gradient attribution of one target is from completeness, and how far it may be (nats)."""

    converged: bool
    local_error: float
    tolerance: float

    @classmethod
    def of(cls, certificate: Certificate, t: int) -> TargetError:
        """The figures of target `t`."""
        return cls(certificate.converged[t], float(certificate.local_error[t]), float(certificate.tolerance[t]))


def status_of(
    error: TargetError,
    agreement: Agreement,
    dilution: Dilution,
    *,
    variant: Agreement,
    variant_name: str,
    verdict: RefereeVerdict | None,
    rule: Rule = RULE,
    falls: str = "log-prob",
) -> tuple[Status, str]:
    """The status and one plain sentence: the rule's figures that gave it.

    Plain rollout decides on dilution. Then the sources that removal found decide: the methods agree where both have
    all of them among their first, and disagree where one lacks any. Only where no removal mattered, or none was asked
    for, does the rank correlation decide. `falls` names F in the sentence.
    """
    if not error.converged:
        return Status.UNCONVERGED, _unconverged(error)
    if why := why_diluted(dilution, rule):
        return Status.DILUTED, f"{why}: do not read attention here. {_variant_clause(variant, variant_name, rule)}"
    if verdict is not None and verdict.sources:
        return _by_sources(verdict, agreement, falls=falls)
    if agreement.adjusted_p is None:
        return Status.DISAGREE, f"Too few features, or a constant row, to compare the two methods. {_ruling(verdict)}"
    if agreement.adjusted_p <= rule.significance:
        return Status.AGREE, f"Both methods rank the sources alike: {_figures(agreement)}."
    return Status.DISAGREE, (
        f"The two methods do not rank the sources alike: {_figures(agreement)}. {_ruling(verdict)}"
    )


def _by_sources(verdict: RefereeVerdict, agreement: Agreement, *, falls: str) -> tuple[Status, str]:
    n = len(verdict.sources)
    parts = f"{n} part{'s' if n > 1 else ''} of the prompt without which the {falls} falls much"
    ranks = (
        "" if agreement.spearman is None else f" Over all features their ranks have Spearman {agreement.spearman:.2f}."
    )
    lacking = [f"{METHOD_WORDS[name]} without {len(units)}" for name in METHOD_WORDS if (units := verdict.missed[name])]
    if lacking:
        return Status.DISAGREE, f"Among their first sources, {' and '.join(lacking)} of the {parts}.{ranks}"
    return Status.AGREE, f"Both methods have among their first sources the {parts}.{ranks}"


def status_alone(error: TargetError, verdict: RefereeVerdict | None) -> tuple[Status, str]:
    """The status where attention rollout is refused for the model, so that nothing stands beside the gradients."""
    if not error.converged:
        return Status.UNCONVERGED, _unconverged(error)
    said = "Attention rollout is refused for this model, so no second method checks the gradients."
    if verdict is None:
        return Status.UNCHECKED, f"{said} No referee was asked either."
    lds = verdict.scores["layer_integrated_gradients"].lds
    if lds is None:
        return Status.UNCHECKED, f"{said} Taking parts of the prompt away does not test them either."
    return Status.UNCHECKED, f"{said} They foretell what taking parts of the prompt away does with an LDS of {lds:.2f}."


def _unconverged(error: TargetError) -> str:
    return (
        f"The gradient attribution may be off by {error.local_error:.3g} nats and "
        f"{error.tolerance:.3g} is allowed: do not read it here."
    )


def why_diluted(dilution: Dilution, rule: Rule = RULE) -> str | None:
    """The reason why a rollout row counts as diluted, or None."""
    if dilution.sink_mass > rule.most_sink:
        return f"Attention rollout puts {dilution.sink_mass:.1%} of its mass on the first token"
    if dilution.null_divergence < rule.least_divergence:
        return (
            f"Attention rollout is {dilution.null_divergence:.3f} bits from what the mask and the depth alone would "
            f"give ({rule.least_divergence:g} is needed)"
        )
    return None


def _figures(agreement: Agreement) -> str:
    return (
        f"Spearman {agreement.spearman:.2f}, p = {agreement.adjusted_p:.2g} against chance and nearness, "
        f"corrected for the number of tokens"
    )


def _variant_clause(variant: Agreement, name: str, rule: Rule) -> str:
    words = name.replace("_", " ").capitalize()
    if variant.adjusted_p is None:
        return f"{words} cannot be compared with the gradients either."
    alike = (
        "ranks the sources as the gradients do"
        if variant.adjusted_p <= rule.significance
        else ("does not rank the sources as the gradients do")
    )
    return f"{words} {alike} (Spearman {variant.spearman:.2f}, p = {variant.adjusted_p:.2g})."


def _ruling(verdict: RefereeVerdict | None) -> str:
    if verdict is None:
        return "No referee was asked which of them is right."
    if verdict.better is None or verdict.interval is None:
        return "Taking parts of the prompt away does not tell which of them is right."
    low, high = verdict.interval
    return (
        f"Taking parts of the prompt away bears out {METHOD_WORDS[verdict.better]} "
        f"(difference of LDS {verdict.difference:.2f}, 95 % interval {low:.2f} to {high:.2f})."
    )
