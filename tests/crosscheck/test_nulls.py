"""The two nulls: how often each says that methods agree which share nothing but a liking for near tokens."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from llmxai.crosscheck import agreement as nulls
from llmxai.crosscheck import rank_test, recency_p

WORLDS = 200
LEVEL = 0.05
FEW_DRAWS = 199


def world(rng: np.random.Generator, kind: str, n: int, shared: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two scores that fall with the distance, each with noise of its own, and with `shared` evidence on top."""
    distance = np.arange(n)[::-1] + 1.0
    trend = {
        "power": -np.log(distance),
        "exponential": -distance / 8,
        "first and last": np.log(1 / distance + 1 / (n - distance + 1.5)),
    }[kind]
    evidence = shared * rng.normal(size=n)
    a, b = (np.exp(trend + evidence + 0.7 * rng.normal(size=n)) for _ in "ab")
    return a, b, distance - 1


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nulls, "RESAMPLES", FEW_DRAWS)


def shares(kind: str, n: int, shared: float) -> tuple[float, float]:
    """Share of worlds that each null calls agreement: plain, recency-preserving."""
    rng = np.random.default_rng(0)
    plain = kept = 0
    for seed in range(WORLDS):
        a, b, distance = world(rng, kind, n, shared)
        test, p = rank_test(a, b, seed=seed), recency_p(a, b, distance, seed=seed)
        plain += test is not None and test[1] <= LEVEL
        kept += p is not None and p <= LEVEL
    return plain / WORLDS, kept / WORLDS


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("kind", ["power", "exponential", "first and last"])
def test_only_the_recency_preserving_null_holds_its_level_in_a_world_of_recency(kind: str) -> None:
    """0.05 with 200 worlds: 0.11 is 4 standard errors above it."""
    plain, kept = shares(kind, 40, shared=0.0)
    assert plain > 0.6
    assert kept <= 0.11


@pytest.mark.usefixtures("few_draws")
def test_shared_evidence_is_still_found() -> None:
    assert shares("power", 40, shared=0.7)[1] > 0.7


@pytest.mark.usefixtures("few_draws")
def test_without_a_trend_both_hold_their_level() -> None:
    rng = np.random.default_rng(1)
    ps = []
    for seed in range(WORLDS):
        a, b = rng.normal(size=(2, 24))
        test, p = rank_test(a, b, seed=seed), recency_p(a, b, np.arange(24), seed=seed)
        assert test is not None
        ps.append((test[1], p))
    assert (np.array(ps) <= LEVEL).mean(axis=0) == pytest.approx([LEVEL, LEVEL], abs=0.06)


def test_within_runs_p_is_the_share_of_permutations() -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 6))
    runs = [np.arange(3), np.arange(3, 6)]
    sums = [
        x[list(first)] @ y[:3] + x[list(second)] @ y[3:]
        for first in permutations(range(3))
        for second in permutations(range(3, 6))
    ]
    want = np.mean(np.array(sums) >= x @ y - 1e-9)
    assert nulls._p(x, y, runs, seed=0) == pytest.approx(want, abs=4 * np.sqrt(0.25 / nulls.RESAMPLES))


def test_the_moments_are_those_of_all_permutations() -> None:
    x, y = np.random.default_rng(4).normal(size=(2, 7))
    runs = [np.arange(4), np.arange(4, 7)]
    sums = [
        x[list(first)] @ y[:4] + x[list(second)] @ y[4:]
        for first in permutations(range(4))
        for second in permutations(range(4, 7))
    ]
    mean, variance = nulls._moments(x, y, runs)
    assert mean == pytest.approx(np.mean(sums), abs=1e-12)
    assert variance == pytest.approx(np.var(sums), abs=1e-12)


def test_many_features_go_by_the_normal_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=200)
    b = a + 8 * rng.normal(size=200)
    drawn = rank_test(a, b), recency_p(a, b, np.arange(200))
    monkeypatch.setattr(nulls, "NORMAL", 100)
    normal = rank_test(a, b), recency_p(a, b, np.arange(200))
    assert normal[0] is not None
    assert drawn[0] is not None
    assert normal[0][1] == pytest.approx(drawn[0][1], abs=0.03)
    assert normal[1] == pytest.approx(drawn[1], abs=0.03)


def test_scores_that_are_position_alone_have_no_p() -> None:
    distance = np.arange(30)
    assert recency_p(np.ones(30), np.arange(30.0), distance) is None
    assert recency_p(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([1, 0])) is None
