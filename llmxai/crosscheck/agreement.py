"""Do two methods put the same features first?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from llmxai.crosscheck.dilution import jensen_shannon
from llmxai.crosscheck.nulls import comparable, rank_test, recency_p
from llmxai.types import Agreement

PERSISTENCE = 0.9
"""p of rank-biased overlap: the first ten ranks then carry 86 % of the weight."""

NOTHING = Agreement(
    spearman=None,
    spearman_p=None,
    recency_p=None,
    adjusted_p=None,
    kendall=None,
    top_k=0,
    top_k_overlap=None,
    rank_biased_overlap=None,
    jensen_shannon=None,
)
"""The agreement with a method that is refused."""


def compare(
    a: Float[np.ndarray, " feature"],
    b: Float[np.ndarray, " feature"],
    distance: Int[np.ndarray, " feature"],
    *,
    top_k: int,
    seed: int = 0,
) -> Agreement:
    """All figures of the agreement of two non-negative scores of the same features, but for the corrected p.

    `distance`: of each feature from the predicting position. See `Agreement` for where a figure is None.
    """
    overlap, k = top_k_overlap(a, b, k=top_k), min(top_k, len(a))
    test = rank_test(a, b, seed=seed)
    if test is None:
        return replace(NOTHING, top_k=k, top_k_overlap=overlap)
    return Agreement(
        spearman=test[0],
        spearman_p=test[1],
        recency_p=recency_p(a, b, distance, seed=seed),
        adjusted_p=None,
        kendall=kendall(a, b),
        top_k=k,
        top_k_overlap=overlap,
        rank_biased_overlap=rank_biased_overlap(a, b),
        jensen_shannon=jensen_shannon(a, b),
    )


def corrected(agreements: Sequence[Agreement]) -> tuple[Agreement, ...]:
    """The same with `adjusted_p`: the larger of the two p-values by Benjamini & Hochberg (1995) over the targets.

    An intersection: agreement has to stand out from chance and from nearness. Where the recency-preserving null is
    undefined, its p counts as 1.
    """
    tested = [i for i, one in enumerate(agreements) if one.spearman_p is not None]
    if not tested:
        return tuple(agreements)
    larger = [_larger_p(agreements[i]) for i in tested]
    adjusted = dict(zip(tested, stats.false_discovery_control(larger, method="bh").tolist(), strict=True))
    return tuple(replace(one, adjusted_p=adjusted.get(i)) for i, one in enumerate(agreements))


def _larger_p(agreement: Agreement) -> float:
    assert agreement.spearman_p is not None
    return max(agreement.spearman_p, 1.0 if agreement.recency_p is None else agreement.recency_p)


def spearman(a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None under three features or where one is constant."""
    return float(stats.spearmanr(a, b).statistic) if comparable(a, b) else None


def kendall(a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"]) -> float | None:
    """Kendall's tau-b; None under three features or where one side is constant."""
    return float(stats.kendalltau(a, b, variant="b").statistic) if comparable(a, b) else None


def top_k_overlap(a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"], *, k: int) -> float | None:
    """Share of the k largest of `a` that are among the k largest of `b`; the earlier feature wins a tie.

    k is cut to the number of features; None where there is none.
    """
    k = min(k, len(a))
    if k == 0:
        return None
    first, second = (set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (a, b))
    return len(first & second) / k


def rank_biased_overlap(
    a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"], *, p: float = PERSISTENCE
) -> float | None:
    """Extrapolated rank-biased overlap, 0 to 1 (Webber, Moffat & Zobel 2010, https://doi.org/10.1145/1852102.1852106).

    RBO_ext = A_k p^k + (1 - p)/p sum_{d=1..k} A_d p^d, equation 32 for two full rankings of the same k features, with
    the agreement A_d = 2 |S_d and T_d| / (|S_d| + |T_d|) of their section 4.6, in which features that are tied stand at
    the rank of the first of them, all together. None where a rank correlation is.
    """
    if not comparable(a, b):
        return None
    k = len(a)
    # the depth at which a feature is reached: 1 + how many come strictly before it
    first, second = (stats.rankdata(-x, method="min").astype(int) for x in (a, b))
    depths = np.arange(1, k + 1)
    reached_a, reached_b, common = (
        np.searchsorted(np.sort(at), depths, side="right") for at in (first, second, np.maximum(first, second))
    )
    agreement = 2 * common / (reached_a + reached_b)
    weights = p ** depths.astype(float)
    return float(agreement[-1] * weights[-1] + (1 - p) / p * np.sum(agreement * weights))
