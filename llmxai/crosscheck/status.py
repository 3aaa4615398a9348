"""The status of one generated token, from a versioned rule with calibrated thresholds (docs/crosscheck.md)."""

from __future__ import annotations

from dataclasses import dataclass

from llmxai.types import Agreement, Certificate, Dilution, RefereeVerdict, Status


@dataclass(frozen=True)
class Rule:
    """Thresholds of the status. `make calibrate` sets those of dilution and checks the others."""

    version: int = 3
    most_sink: float = 0.55
    """Rollout is diluted above this share of the row on position 0."""
    least_divergence: float = 0.007
    """Rollout is diluted below this divergence (bits) from the uniform-causal null."""
    significance: float = 0.05
    """The methods agree up to this corrected p-value of the rank correlation."""
    top_k: int = 5
    least_fall: float = 1.0
    """Removing a source lowers F by at least this many nats."""
    fall_share: float = 0.3
    """Removing a source also lowers F by at least this share of the largest drop."""


RULE = Rule()
METHOD_WORDS = {"layer_integrated_gradients": "the gradients", "attention_rollout": "attention rollout"}
MISSES = {"layer_integrated_gradients": "the gradients miss", "attention_rollout": "attention rollout misses"}


@dataclass(frozen=True)
class TargetError:
    """How far the gradient attribution of one target is from completeness, and the allowed error (nats)."""

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
    """The status, and one plain sentence with the figures that gave it.

    Plain rollout decides on dilution. Then the sources found by removal decide: the methods agree if both have all of
    them among their first, and disagree if one misses any. Only if no removal mattered, or nothing was removed, does
    the rank correlation decide. `falls` names F in the sentence.
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
    parts = f"{n} part{'s' if n > 1 else ''} of the prompt whose removal lowers the {falls} much"
    ranks = (
        "" if agreement.spearman is None else f" Over all features their ranks have Spearman {agreement.spearman:.2f}."
    )
    missing = [f"{MISSES[name]} {len(units)}" for name in MISSES if (units := verdict.missed[name])]
    if missing:
        return Status.DISAGREE, f"Among their first sources, {' and '.join(missing)} of the {parts}.{ranks}"
    return Status.AGREE, f"Both methods have among their first sources the {parts}.{ranks}"


def status_alone(error: TargetError, verdict: RefereeVerdict | None) -> tuple[Status, str]:
    """The status if attention rollout is refused, so there is nothing to compare the gradients with."""
    if not error.converged:
        return Status.UNCONVERGED, _unconverged(error)
    said = "Attention rollout is refused for this model, so no second method checks the gradients."
    if verdict is None:
        return Status.UNCHECKED, f"{said} Nothing was removed to test them either."
    lds = verdict.scores["layer_integrated_gradients"].lds
    if lds is None:
        return Status.UNCHECKED, f"{said} Removing parts of the prompt does not test them either."
    return Status.UNCHECKED, f"{said} They predict the effects of removal with an LDS of {lds:.2f}."


def _unconverged(error: TargetError) -> str:
    return (
        f"The gradient attribution may be off by {error.local_error:.3g} nats, and "
        f"{error.tolerance:.3g} is allowed: do not read it here."
    )


def why_diluted(dilution: Dilution, rule: Rule = RULE) -> str | None:
    """Why a rollout row counts as diluted, or None."""
    if dilution.sink_mass > rule.most_sink:
        return f"Attention rollout puts {dilution.sink_mass:.1%} of its mass on the first token"
    if dilution.null_divergence < rule.least_divergence:
        return (
            f"Attention rollout is {dilution.null_divergence:.3f} bits from what the mask and the depth alone would "
            f"give (at least {rule.least_divergence:g} is needed)"
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
        return "Nothing was removed from the prompt to test which of them is right."
    if verdict.better is None or verdict.interval is None:
        return "Removing parts of the prompt does not show which of them is right."
    low, high = verdict.interval
    return (
        f"Removing parts of the prompt supports {METHOD_WORDS[verdict.better]} "
        f"(difference of LDS {verdict.difference:.2f}, 95 % interval {low:.2f} to {high:.2f})."
    )
