"""Rank correlations, divergences and intervals; needs only numpy and scipy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from scipy.spatial import distance

LEAST_QUESTIONS = 3
"""With fewer questions than this, a mean has no interval."""

Values = Float[np.ndarray, " value"]


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval; `low` and `high` are None if there are too few questions."""

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Values, *, resamples: int, seed: int) -> Estimate:
    """Mean and percentile bootstrap interval over the questions, which are resampled whole."""
    mean = float(np.mean(values))
    if len(values) < LEAST_QUESTIONS:
        return Estimate(mean=mean, low=None, high=None, n=len(values))
    interval = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean=mean, low=float(interval.low), high=float(interval.high), n=len(values))


def paired_difference(a: Values, b: Values, *, resamples: int, seed: int) -> Estimate:
    """Mean of a - b with its interval; a and b are for the same questions, which are resampled in pairs."""
    return estimate(np.asarray(a) - np.asarray(b), resamples=resamples, seed=seed)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, *, resamples: int, confidence: float, seed: int
) -> tuple[float, float] | None:
    """Percentile interval of a statistic of n items, which are resampled whole.

    `statistic` maps indices [resample, n] to one number per resample. Resamples with NaN are left out; the result is
    None if more than half are NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of the interval that is not taken from here
        found = stats.bootstrap(
            (np.arange(n),),
            lambda indices, axis: statistic(np.moveaxis(indices, axis, -1)),
            n_resamples=resamples,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    usable = np.isfinite(found)
    if usable.mean() < 0.5:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(found[usable], [tail, 1 - tail])
    return float(low), float(high)


def comparable(a: Values, b: Values) -> bool:
    """Whether a rank correlation is defined: at least three values, and neither side constant."""
    return len(a) >= 3 and bool(np.ptp(a) > 0) and bool(np.ptp(b) > 0)


def spearman(a: Values, b: Values) -> float | None:
    """Spearman's rank correlation, with mean ranks for ties; None with fewer than three values or a constant side."""
    return float(stats.spearmanr(a, b).statistic) if comparable(a, b) else None


def spearman_p(a: Values, b: Values, *, independent: int) -> float:
    """One-sided p-value of a positive rank correlation, by Student's t, of values of which so many are independent."""
    r = spearman(a, b)
    return 1.0 if r is None or independent < 3 else _chance_of(r, independent)


def _chance_of(r: float, n: int) -> float:
    """How often n independent values correlate by at least `r` by chance, by Student's t."""
    r = float(np.clip(r, 1e-12 - 1, 1 - 1e-12))
    return float(stats.t.sf(r * np.sqrt((n - 2) / (1 - r**2)), n - 2))


def spearman_rows(a: Float[np.ndarray, "row value"], b: Float[np.ndarray, "row value"]) -> Float[np.ndarray, " row"]:
    """Spearman's correlation of each row of `a` with the same row of `b`; NaN if one is constant."""
    x, y = (stats.rankdata(side, axis=-1) for side in (a, b))
    x, y = (side - side.mean(axis=-1, keepdims=True) for side in (x, y))
    scale = np.sqrt(np.sum(x**2, axis=-1) * np.sum(y**2, axis=-1))
    usable = scale > 0
    return np.where(usable, np.sum(x * y, axis=-1) / np.where(usable, scale, 1), np.nan)


def kendall(a: Values, b: Values) -> float | None:
    """Kendall's tau-b; None with fewer than three values or a constant side."""
    return float(stats.kendalltau(a, b, variant="b").statistic) if comparable(a, b) else None


def top_k_overlap(a: Values, b: Values, *, k: int) -> float | None:
    """Share of the k largest of `a` that are among the k largest of `b`; the earlier value wins a tie.

    k is limited to the number of values; None if there are none.
    """
    k = min(k, len(a))
    if k == 0:
        return None
    first, second = (set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (a, b))
    return len(first & second) / k


def jensen_shannon(p: Values, q: Values) -> float:
    """Jensen-Shannon divergence in bits, 0 (equal) to 1 (disjoint), of two rows of mass, each scaled to sum 1.

    A row without mass has divergence 1 from every other row, and 0 from another row without mass.
    """
    if p.sum() <= 0 or q.sum() <= 0:
        return 0.0 if p.sum() <= 0 and q.sum() <= 0 else 1.0
    with np.errstate(invalid="ignore"):  # of equal rows, rounding may put the sum just below 0
        return float(np.clip(np.nan_to_num(distance.jensenshannon(p, q, base=2)) ** 2, 0, 1))


@dataclass(frozen=True)
class LinearFit:
    """Weights with their uncertainty, and how well they can do."""

    mean: Float[np.ndarray, " unit"]
    sd: Float[np.ndarray, " unit"]
    """Standard deviation of the posterior of each weight."""
    noise: float
    """Standard deviation of what a sum of the weights does not explain (interactions of units)."""
    df: int
    """Degrees of freedom of the interval."""

    def interval(self, confidence: float) -> tuple[Float[np.ndarray, " unit"], Float[np.ndarray, " unit"]]:
        """Lower and upper ends, by Student's t."""
        width = stats.t.ppf((1 + confidence) / 2, self.df) * self.sd
        return self.mean - width, self.mean + width


PRIOR_GRID = np.logspace(-3, 3, 25)
"""Ratios of the variance of the weights to that of the noise that are tried."""


def ridge_with_prior(
    x: Float[np.ndarray, "row unit"], y: Float[np.ndarray, " row"], prior: Float[np.ndarray, " unit"]
) -> LinearFit:
    """Bayesian ridge regression of y on x (with an intercept), the weights being normal around a scaled prior mean.

    weights ~ N(s prior, r v I), y ~ N(intercept + x weights, v I). s is fitted by least squares and at least 0; v and
    the ratio r are those of the largest marginal likelihood (MacKay 1992, https://doi.org/10.1162/neco.1992.4.3.415).
    A prior of zeros gives plain ridge. Fewer than two rows give the prior with an infinite deviation.
    """
    rows, units = x.shape
    if rows < 2:
        return LinearFit(prior.astype(float), np.full(units, np.inf), float("nan"), 1)
    centred, target = x - x.mean(axis=0), y - y.mean()
    guess = centred @ prior
    scale = max(0.0, float(guess @ target) / float(guess @ guess)) if (guess**2).sum() > 0 else 0.0
    residual = target - scale * guess
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    values, rotated = singular**2, left.T @ residual
    outside = max(0.0, float(residual @ residual - rotated @ rotated))
    df = max(1, rows - 1)

    def evidence(ratio: float) -> tuple[float, float]:
        spread = 1 + ratio * values
        variance = (float(np.sum(rotated**2 / spread)) + outside) / df
        return -0.5 * float(np.sum(np.log(spread))) - 0.5 * df * np.log(max(variance, 1e-300)), variance

    ratio = max(PRIOR_GRID, key=lambda one: evidence(one)[0])
    variance = evidence(ratio)[1]
    shrunk = ratio * singular / (1 + ratio * values)
    mean = scale * prior + right.T @ (shrunk * rotated)
    sd = np.sqrt(np.clip(variance * ratio * (1 - (shrunk * singular) @ right**2), 0, None))
    return LinearFit(mean, sd, float(np.sqrt(variance)), df)


def disjoint_pairs(kept: Bool[np.ndarray, "row unit"]) -> Int[np.ndarray, "pair 2"]:
    """Indices of rows that have no unit in common, two by two, every row once; a row left over is its own partner.

    F of a random half and of the other half depend on each other: a sum of effects that is larger in one is smaller in
    the other by as much, and what two units do together is equal in both. So a test has as many observations as pairs.
    """
    free, found = list(range(len(kept))), []
    while free:
        row = free.pop(0)
        partner = next((other for other in free if not (kept[row] & kept[other]).any()), row)
        if partner != row:
            free.remove(partner)
        found.append((row, partner))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def acting_together(
    x: Float[np.ndarray, "row unit"], residual: Float[np.ndarray, " row"], *, significance: float = 0.05
) -> tuple[int, int] | None:
    """The two columns of 0 and 1 whose product, as signs, best explains what their sum does not.

    None where no correlation is significant after Bonferroni's correction for the number of pairs. Rows that complement
    each other count as one (`disjoint_pairs`).
    """
    units = x.shape[1]
    pairs = disjoint_pairs(x > 0.5)
    rows, left = len(pairs), residual[pairs].mean(axis=1)
    if rows < 4 or units < 2 or np.ptp(left) <= 0:
        return None
    first, second = np.triu_indices(units, k=1)
    signs = 2.0 * x - 1
    products = (signs[:, first] * signs[:, second])[pairs].mean(axis=1)
    products, left = products - products.mean(axis=0), left - left.mean()
    spread = np.sqrt((products**2).sum(axis=0) * (left**2).sum())
    correlation = np.divide(left @ products, spread, out=np.zeros(len(first)), where=spread > 1e-9)
    best = int(np.argmax(np.abs(correlation)))
    p = 2 * _chance_of(abs(float(correlation[best])), rows)
    return (int(first[best]), int(second[best])) if p * len(first) <= significance else None
