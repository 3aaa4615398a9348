"""Means with bootstrap intervals, and paired differences: honest about how few questions there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

LEAST = 3
"""Under this many questions there is no interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval; `low` and `high` are None where there are too few."""

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Float[np.ndarray, " question"], *, resamples: int, seed: int) -> Estimate:
    """Mean and percentile bootstrap interval over the questions, which are resampled whole."""
    mean = float(np.mean(values))
    if len(values) < LEAST:
        return Estimate(mean=mean, low=None, high=None, n=len(values))
    interval = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean=mean, low=float(interval.low), high=float(interval.high), n=len(values))


def paired_difference(
    a: Float[np.ndarray, " question"], b: Float[np.ndarray, " question"], *, resamples: int, seed: int
) -> Estimate:
    """Mean of a - b with its interval; a and b are of the same questions, which are resampled in pairs."""
    return estimate(np.asarray(a) - np.asarray(b), resamples=resamples, seed=seed)
