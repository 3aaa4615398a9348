"""Agreement of two methods, and how often chance or nearness alone would agree as well.

Both nulls permute one side and count how often the rank correlation is at least as large. The plain null permutes all
features freely. But attention and gradients both favour nearby tokens (and often the first of the prompt), so two
methods can agree that share nothing else. The recency-preserving null therefore removes from both sides the part that
the position predicts, and permutes the rest among neighbours only:

1. a cubic in the log distance from the predicting position is fitted to the ranks of each side by least squares;
2. the statistic is the correlation of the two residuals (Spearman's partial correlation given the position);
3. the residuals of one side are permuted within runs of `NEIGHBOURS` neighbouring features, which preserves any trend
   left by the fit and the larger spread of near tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from llmxai.stats import comparable, jensen_shannon, kendall, top_k_overlap
from llmxai.types import Agreement

RESAMPLES = 1999
EXACT = 7
"""Up to this many features, all permutations are counted (7! = 5,040)."""
NORMAL = 300
"""From this many features on, p uses the normal approximation with the permutations' exact mean and variance."""
NEIGHBOURS = 4
"""Size of the runs within which the recency-preserving null permutes."""
DEGREE = 3


def rank_test(
    a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"], *, seed: int = 0
) -> tuple[float, float] | None:
    """Spearman's rank correlation and its one-sided permutation p-value (how often chance agrees as well).

    p counts the observed order among the permutations, so it is never 0: with `RESAMPLES` draws the minimum is 1/2000.
    None with fewer than three features or if one side is constant.
    """
    if not comparable(a, b):
        return None
    x, y = standardised(stats.rankdata(a)), standardised(stats.rankdata(b))
    statistic = float(x @ y)
    p = _exact_p(x, y) if len(x) <= EXACT else _p(x, y, [np.arange(len(x))], seed=seed)
    return float(np.clip(statistic, -1, 1)), p


def recency_p(
    a: Float[np.ndarray, " feature"],
    b: Float[np.ndarray, " feature"],
    distance: Float[np.ndarray, " feature"] | Int[np.ndarray, " feature"],
    *,
    seed: int = 0,
) -> float | None:
    """One-sided p-value against permutations that preserve recency.

    `distance`, at least 0, is measured from the predicting position. None if `rank_test` gives None, and if the
    position alone explains one side completely.
    """
    if not comparable(a, b):
        return None
    order = np.argsort(distance, kind="stable")
    trend = _design(np.asarray(distance, dtype=float)[order])
    x, y = (_residuals(stats.rankdata(side)[order], trend) for side in (a, b))
    if np.allclose(x, 0) or np.allclose(y, 0):
        return None
    runs = np.array_split(np.arange(len(x)), max(1, round(len(x) / NEIGHBOURS)))
    return _p(standardised(x), standardised(y), runs, seed=seed)


def standardised(x: Float[np.ndarray, " feature"]) -> Float[np.ndarray, " feature"]:
    """Mean 0 and norm 1."""
    centred = x - x.mean()
    return np.asarray(centred / np.sqrt(np.sum(centred**2)))


def _design(distance: Float[np.ndarray, " feature"]) -> Float[np.ndarray, "feature term"]:
    """Powers of the log distance; lower degrees for few features, so that something is left to permute."""
    near = np.log1p(distance)
    degree = min(DEGREE, len(distance) // 6)
    return np.vander(near - near.mean(), degree + 1)


def _residuals(
    x: Float[np.ndarray, " feature"], design: Float[np.ndarray, "feature term"]
) -> Float[np.ndarray, " feature"]:
    return np.asarray(x - design @ np.linalg.lstsq(design, x, rcond=None)[0])


def _exact_p(x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"]) -> float:
    def correlation(rows: Float[np.ndarray, "*resample feature"], axis: int) -> Float[np.ndarray, "*resample"]:
        return np.asarray(np.sum(rows * y, axis=axis))

    test = stats.permutation_test(
        (x,), correlation, permutation_type="pairings", alternative="greater", vectorized=True, n_resamples=np.inf
    )
    return float(test.pvalue)


def _p(
    x: Float[np.ndarray, " feature"],
    y: Float[np.ndarray, " feature"],
    runs: list[Int[np.ndarray, " _"]],
    *,
    seed: int,
) -> float:
    """Share of permutations of `x` within runs whose product with `y` is at least as large; counts the observed one."""
    observed = float(x @ y)
    if len(x) >= NORMAL:
        mean, variance = _moments(x, y, runs)
        return float(np.clip(stats.norm.sf(observed, loc=mean, scale=np.sqrt(variance)), 1 / (RESAMPLES + 1), 1))
    rng = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for run in runs:
        total += rng.permuted(np.tile(x[run], (RESAMPLES, 1)), axis=1) @ y[run]
    slack = 1e-9  # the same numbers summed in another order
    return float((1 + np.count_nonzero(total >= observed - slack)) / (RESAMPLES + 1))


def _moments(
    x: Float[np.ndarray, " feature"], y: Float[np.ndarray, " feature"], runs: list[Int[np.ndarray, " _"]]
) -> tuple[float, float]:
    """Exact mean and variance of the permuted sum: (sum of x)(sum of y)/n and SSx SSy/(n - 1) per run."""
    mean = sum(x[run].sum() * y[run].sum() / len(run) for run in runs)
    variance = sum(
        np.sum((x[run] - x[run].mean()) ** 2) * np.sum((y[run] - y[run].mean()) ** 2) / (len(run) - 1)
        for run in runs
        if len(run) > 1
    )
    return float(mean), max(float(variance), 1e-300)


PERSISTENCE = 0.9
"""p of rank-biased overlap; the first ten ranks carry 86 % of the weight."""

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
"""The agreement with a refused method."""


def compare(
    a: Float[np.ndarray, " feature"],
    b: Float[np.ndarray, " feature"],
    distance: Int[np.ndarray, " feature"],
    *,
    top_k: int,
    seed: int = 0,
) -> Agreement:
    """All figures of the agreement of two non-negative scores of the same features, except the corrected p.

    `distance`: of each feature from the predicting position. See `Agreement` for when a figure is None.
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
    """The same with `adjusted_p`: the larger p-value, corrected over the targets (Benjamini & Hochberg 1995).

    Agreement must exceed both chance and nearness. If the recency-preserving null is undefined, its p counts as 1.
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


def rank_biased_overlap(
    a: Float[np.ndarray, " feature"], b: Float[np.ndarray, " feature"], *, p: float = PERSISTENCE
) -> float | None:
    """Extrapolated rank-biased overlap, 0 to 1 (Webber, Moffat & Zobel 2010, https://doi.org/10.1145/1852102.1852106).

    RBO_ext = A_k p^k + (1 - p)/p sum_{d=1..k} A_d p^d, equation 32 for two full rankings of the same k features, with
    the agreement A_d = 2 |S_d and T_d| / (|S_d| + |T_d|) of their section 4.6, in which tied features all have the rank
    of the first of them. None if a rank correlation is undefined.
    """
    if not comparable(a, b):
        return None
    k = len(a)
    # the depth at which a feature is reached: 1 + the number of features strictly before it
    first, second = (stats.rankdata(-x, method="min").astype(int) for x in (a, b))
    depths = np.arange(1, k + 1)
    reached_a, reached_b, common = (
        np.searchsorted(np.sort(at), depths, side="right") for at in (first, second, np.maximum(first, second))
    )
    agreement = 2 * common / (reached_a + reached_b)
    weights = p ** depths.astype(float)
    return float(agreement[-1] * weights[-1] + (1 - p) / p * np.sum(agreement * weights))
