"""Do two methods put the same features first?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats

RESAMPLES = 1999
EXACT = 7
"""Up to this many features every permutation is counted (7! = 5,040)."""


def spearman(
    a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"], *, seed: int = 0
) -> tuple[float, float] | None:
    """Spearman's rank correlation and its one-sided permutation p-value (how often chance agrees as well).

    p counts the observed order among the permutations, so it is never 0: with `RESAMPLES` draws the least is 1/2000.
    None under three features or where one side is constant.
    """
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    ranks_a, ranks_b = _standardised_ranks(a), _standardised_ranks(b)

    def correlation(x: Float[np.ndarray, "*resample feature"], axis: int) -> Float[np.ndarray, "*resample"]:
        return np.asarray(np.sum(x * ranks_b, axis=axis))

    test = stats.permutation_test(
        (ranks_a,),
        correlation,
        permutation_type="pairings",
        alternative="greater",
        vectorized=True,
        n_resamples=RESAMPLES if len(a) > EXACT else np.inf,
        rng=np.random.default_rng(seed),
    )
    return float(np.clip(test.statistic, -1, 1)), float(test.pvalue)


def top_k_overlap(a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"], *, k: int) -> float | None:
    """Share of the k largest of `a` that are among the k largest of `b`; the earlier feature wins a tie.

    k is cut to the number of features; None where there is none.
    """
    k = min(k, len(a))
    if k == 0:
        return None
    first, second = (set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (a, b))
    return len(first & second) / k


def _standardised_ranks(x: Float[np.ndarray, " feature"]) -> Float[np.ndarray, " feature"]:
    ranks = stats.rankdata(x)
    centred = ranks - ranks.mean()
    return np.asarray(centred / np.sqrt(np.sum(centred**2)))
