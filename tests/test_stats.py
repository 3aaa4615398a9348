"""The ridge with a prior against closed forms, and its interval against many draws of a known truth."""

from __future__ import annotations

import numpy as np
import pytest

from llmxai.methods.perturbation.removal import half_subsets
from llmxai.stats import PRIOR_GRID, acting_together, disjoint_pairs, ridge_with_prior, spearman_p


def free_halves(rows: int, units: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, units)) < 0.5).astype(float)


def closed_form(x: np.ndarray, y: np.ndarray, prior: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean, and covariance in units of the noise's variance, by the textbook's normal equations."""
    centred, target = x - x.mean(axis=0), y - y.mean()
    inverse = np.linalg.inv(centred.T @ centred + np.eye(x.shape[1]) / ratio)
    return prior + inverse @ centred.T @ (target - centred @ prior), inverse


@pytest.mark.parametrize("ratio", [1e-2, 1.0, 30.0])
def test_a_zero_prior_is_plain_ridge(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    x, rng = free_halves(40, 12, 0), np.random.default_rng(1)
    y = x @ rng.normal(size=12) + rng.normal(size=40)
    monkeypatch.setattr("llmxai.stats.PRIOR_GRID", np.array([ratio]))
    fit = ridge_with_prior(x, y, np.zeros(12))
    mean, covariance = closed_form(x, y, np.zeros(12), ratio)
    np.testing.assert_allclose(fit.mean, mean, atol=1e-10)
    np.testing.assert_allclose(fit.sd, fit.noise * np.sqrt(np.diag(covariance)), rtol=1e-8)


def test_the_prior_shifts_the_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rng = free_halves(20, 30, 2), np.random.default_rng(3)
    true = rng.normal(size=30)
    y = x @ true + 0.1 * rng.normal(size=20)
    monkeypatch.setattr("llmxai.stats.PRIOR_GRID", np.array([0.5]))
    fit = ridge_with_prior(x, y, true)
    centred = x - x.mean(axis=0)
    scale = float((centred @ true) @ (y - y.mean())) / float((centred @ true) @ (centred @ true))
    mean, _ = closed_form(x, y, scale * true, 0.5)
    np.testing.assert_allclose(fit.mean, mean, atol=1e-10)


def test_without_noise_the_weights_come_back() -> None:
    x, true = free_halves(60, 10, 4), np.arange(10.0) - 3
    fit = ridge_with_prior(x, 7 + x @ true, np.zeros(10))
    np.testing.assert_allclose(fit.mean, true, atol=0.02)
    assert fit.noise < 0.1


@pytest.mark.parametrize("factor", [0.2, 1.0, 50.0])
def test_a_prior_of_any_scale_is_enough_with_few_rows(factor: float) -> None:
    x, true = free_halves(6, 40, 5), np.random.default_rng(6).normal(size=40)
    fit = ridge_with_prior(x, x @ true, factor * true)
    np.testing.assert_allclose(fit.mean, true, atol=1e-6)


def test_a_prior_that_points_the_other_way_counts_as_none() -> None:
    x, true = free_halves(64, 10, 7), np.arange(10.0)
    fit, plain = (ridge_with_prior(x, x @ true, prior) for prior in (-true, 0 * true))
    np.testing.assert_allclose(fit.mean, plain.mean, atol=1e-12)


def test_fewer_than_two_rows_give_the_prior_without_any_certainty() -> None:
    fit = ridge_with_prior(np.zeros((1, 3)), np.zeros(1), np.array([1.0, 2.0, 3.0]))
    assert fit.mean.tolist() == [1, 2, 3]
    low, high = fit.interval(0.9)
    assert np.isneginf(low).all()
    assert np.isposinf(high).all()


def test_the_ratio_of_the_largest_evidence_is_taken() -> None:
    """Against the density of y under each ratio, the variance of the noise being its own best."""
    x, rng = free_halves(30, 8, 8), np.random.default_rng(9)
    y = x @ rng.normal(size=8) + rng.normal(size=30)
    centred, target = x - x.mean(axis=0), y - y.mean()

    def density(ratio: float) -> float:
        spread = np.eye(30) + ratio * centred @ centred.T
        variance = float(target @ np.linalg.solve(spread, target)) / 29
        return -0.5 * float(np.linalg.slogdet(spread)[1]) - 0.5 * 29 * np.log(variance)

    best = max(PRIOR_GRID, key=density)
    np.testing.assert_allclose(ridge_with_prior(x, y, np.zeros(8)).mean, closed_form(x, y, np.zeros(8), best)[0])


@pytest.mark.parametrize("good_prior", [True, False])
def test_nine_in_ten_intervals_hold_the_weight(good_prior: bool) -> None:
    rng, inside = np.random.default_rng(10), []
    for seed in range(60):
        x = half_subsets(24, 64, seed=seed).double().numpy()
        true = rng.normal(size=24)
        y = x @ true + rng.normal(size=64)
        prior = 3 * (true + 0.7 * rng.normal(size=24)) if good_prior else np.zeros(24)
        low, high = ridge_with_prior(x, y, prior).interval(0.9)
        inside.append((low <= true) & (true <= high))
    assert 0.85 <= np.mean(inside) <= 0.95


# pairs


def test_a_planted_pair_is_named() -> None:
    x, rng = free_halves(64, 15, 11), np.random.default_rng(12)
    assert acting_together(x, 3 * x[:, 4] * x[:, 9] - 1.5 * (x[:, 4] + x[:, 9]) + 0.3 * rng.normal(size=64)) == (4, 9)


def test_noise_seldom_names_a_pair() -> None:
    rng = np.random.default_rng(13)
    named = [acting_together(free_halves(64, 15, seed), rng.normal(size=64)) is not None for seed in range(100)]
    assert sum(named) <= 10


def test_what_is_equal_in_two_halves_is_one_observation() -> None:
    """Four units that act together leave the same in a half and in the other half, and there is no pair."""
    rng, named = np.random.default_rng(14), 0
    for seed in range(40):
        x = half_subsets(20, 128, seed=seed).double().numpy()
        fours = np.array([rng.choice(20, 4, replace=False) for _ in range(60)])
        named += acting_together(x, (2 * x - 1)[:, fours].prod(axis=2) @ rng.normal(size=60)) is not None
    assert named <= 6


@pytest.mark.parametrize(("units", "pairs"), [(20, 64), (6, 10), (2, 1)])
def test_pairs_of_halves(units: int, pairs: int) -> None:
    kept = half_subsets(units, 128, seed=1).numpy()
    found = disjoint_pairs(kept)
    assert len(found) == pairs
    assert sorted(found.ravel()) == list(range(len(kept)))
    assert not any((kept[a] & kept[b]).any() for a, b in found)


def test_a_row_without_a_partner_is_alone() -> None:
    kept = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    assert disjoint_pairs(kept).tolist() == [[0, 2], [1, 1]]


def test_nothing_to_explain_names_no_pair() -> None:
    assert acting_together(free_halves(64, 5, 0), np.zeros(64)) is None
    assert acting_together(free_halves(3, 5, 0), np.arange(3.0)) is None
    assert acting_together(free_halves(64, 1, 0), np.arange(64.0)) is None


def test_the_p_value_of_a_perfect_and_of_a_reversed_order() -> None:
    up = np.arange(6.0)
    assert spearman_p(up, up, independent=6) < 1e-6
    assert spearman_p(up, -up, independent=6) > 1 - 1e-6
    assert spearman_p(up, up, independent=2) == spearman_p(up, 0 * up, independent=6) == 1.0
