"""What the cross-check says of one generated token; `llmxai.types` hands these on. Units: LDS and shares have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmxai.names import Status


@dataclass(frozen=True)
class Agreement:
    """One rollout row against |integrated gradients| over the target's features.

    Every figure is None under three features or where one side is constant.
    """

    spearman: float | None
    spearman_p: float | None
    """One-sided p-value of the Spearman correlation against permutations of the features."""
    recency_p: float | None
    """The same against permutations that keep recency: both methods like nearby tokens, which is nobody's evidence."""
    adjusted_p: float | None
    """The larger of the two p-values, corrected over the targets (Benjamini-Hochberg)."""
    kendall: float | None
    """Tau-b."""
    top_k: int
    top_k_overlap: float | None
    """Share of the top-k features that the two methods have in common; None where there is no feature."""
    rank_biased_overlap: float | None
    """Extrapolated RBO, p = 0.9 (Webber, Moffat & Zobel 2010)."""
    jensen_shannon: float | None
    """Divergence (bits) of the two, each scaled to sum 1."""


@dataclass(frozen=True)
class Dilution:
    """How much one rollout row says, beside the null of the same depth, length and mask."""

    sink_mass: float
    """Share of the row on position 0."""
    feature_mass: float
    """Share of the row on the target's features."""
    entropy: float | None
    """Entropy of the row over the features, 0 (one feature) to 1 (uniform); None under two features."""
    null_divergence: float
    """Jensen-Shannon divergence (bits, 0 to 1) of the row from the uniform-causal null, over all positions."""
    similarity: float
    """Mean cosine with the other targets' rows over the positions both see; 1 where there is a single target."""


@dataclass(frozen=True)
class Score:
    """How well one method foretells what ablation does to one target."""

    lds: float | None
    """Linear datamodelling score: Spearman of the summed scores of what is kept with F (Cohen-Wang 2024, ContextCite);
    None where either is constant."""
    leave_one_out: float | None
    """Spearman of the method's unit scores with the leave-one-out drops."""


@dataclass(frozen=True)
class Verdict:
    """What ablation says about one target: which method foretells it better."""

    scores: Mapping[str, Score]
    """By method name: `layer_integrated_gradients`, `attention_rollout`, the variant, and `leave_one_out` itself as a
    ceiling (its `leave_one_out` is None)."""
    better: str | None
    """The name of the better of gradients and plain rollout; None where the interval of the difference holds 0."""
    difference: float | None
    """LDS of integrated gradients minus LDS of plain rollout."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of the difference, over the random subsets."""
    sources: tuple[int, ...]
    """The units whose removal lowers F much: by a nat, and by a share of the largest fall (`Rule`)."""
    missed: Mapping[str, tuple[int, ...]]
    """By method name, those of `sources` that are not among the method's own first units."""


@dataclass(frozen=True)
class CrossCheck:
    """One target: both families compared, the referee's word, and the status that follows."""

    status: Status
    reason: str
    """One plain sentence: the rule and the figures that gave the status."""
    agreement: Agreement
    """Of integrated gradients and plain rollout."""
    dilution: Dilution | None
    """Of plain rollout; None where it is refused."""
    variant_agreement: Agreement
    variant_dilution: Dilution | None
    verdict: Verdict | None
    """None where the referee was not asked."""
