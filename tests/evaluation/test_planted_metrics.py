"""Known sources: ranks, ties, and intervals over questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmxai.evaluation import estimate, paired_difference
from llmxai.evaluation.metrics import planted_truth


def figures(scores: list[float], truth: list[int]) -> dict[str, float]:
    return planted_truth(torch.tensor(scores, dtype=torch.float64), torch.tensor(truth, dtype=torch.bool))


def test_ranks_without_ties() -> None:
    found = figures([0.1, -5.0, 0.3, 0.2], [0, 0, 0, 1])
    assert found == {"mrr": 1 / 2, "precision": 0.0, "mrr_abs": 1 / 3, "precision_abs": 0.0}


def test_the_sign_counts_unless_dropped() -> None:
    found = figures([0.1, -5.0, 0.3, 0.2], [0, 1, 0, 0])
    assert found == {"mrr": 1 / 4, "precision": 0.0, "mrr_abs": 1.0, "precision_abs": 1.0}


def test_several_sources() -> None:
    assert figures([4, 3, 2, 1], [1, 0, 1, 0])["mrr"] == 1.0
    assert figures([4, 3, 2, 1], [1, 0, 1, 0])["precision"] == 0.5


def test_ties_are_chance() -> None:
    """All equal: the mean rank, and the share of places that a random order would give."""
    found = figures([0.0] * 5, [0, 0, 1, 1, 0])
    assert found["mrr"] == 1 / 3
    assert found["precision"] == pytest.approx(2 / 5)
    assert figures([1.0, 0.0, 0.0], [0, 1, 1])["precision"] == pytest.approx(1 / 2)


def test_intervals_against_a_plain_bootstrap() -> None:
    values = np.random.default_rng(0).normal(size=25)
    found = estimate(values, resamples=4000, seed=1)
    rng = np.random.default_rng(7)
    means = [rng.choice(values, size=25).mean() for _ in range(4000)]
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.03)
    assert found.n == 25


def test_few_questions_have_no_interval() -> None:
    found = estimate(np.array([0.2, 0.4]), resamples=100, seed=0)
    assert (found.mean, found.low, found.high, found.n) == (pytest.approx(0.3), None, None, 2)
    still = estimate(np.array([0.5, 0.5, 0.5]), resamples=100, seed=0)
    assert (still.low, still.high) == (0.5, 0.5)


def test_pairs_are_kept_together() -> None:
    """A constant lead on very different questions has an interval of no width."""
    hard = np.array([0.0, 5.0, 100.0, -30.0])
    found = paired_difference(hard + 0.25, hard, resamples=200, seed=0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
