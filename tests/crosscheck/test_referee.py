"""The referee in worlds whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from llmxai.crosscheck.referee import (
    CEILING,
    RESAMPLES,
    difference_interval,
    methods_to_read,
    missed,
    sources_of,
    verdicts,
)
from llmxai.methods.perturbation.removal import half_subsets, unit_sums
from llmxai.stats import disjoint_pairs, spearman_p
from llmxai.types import Effects

N_UNITS, TARGETS = 12, 3
UNITS = tuple((2 * i + 1, 2 * i + 3) for i in range(N_UNITS))
SEQ = 2 * N_UNITS + 4


def additive(weights: torch.Tensor, *, noise: float = 0.0, subsets: int = 64) -> Effects:
    """A world in which every unit adds its weight to F, whatever else is there."""
    kept = half_subsets(N_UNITS, subsets, seed=0)
    rng = np.random.default_rng(0)
    f = weights @ kept.T.double() + noise * torch.from_numpy(rng.normal(size=(len(weights), len(kept))))
    full = weights.sum(dim=1)
    return Effects(
        operator="delete",
        units=UNITS,
        kept=kept,
        f_full=full,
        f_masked=f,
        f_without=full[:, None] - weights,
        settings={},
    )


def token_scores(weights: torch.Tensor) -> torch.Tensor:
    """[target, seq] whose unit sums are `weights`, uneven within a unit."""
    values = torch.zeros(len(weights), SEQ, dtype=torch.float64)
    for unit, (start, end) in enumerate(UNITS):
        values[:, start] = 0.25 * weights[:, unit]
        values[:, end - 1] = 0.75 * weights[:, unit]
    return values


def weights(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(TARGETS, N_UNITS)))


def test_the_true_weights_of_an_additive_world_have_lds_1() -> None:
    true = weights()
    got = verdicts(
        additive(true),
        {"layer_integrated_gradients": token_scores(true), "attention_rollout": token_scores(weights(1))},
    )
    for verdict in got:
        assert verdict.scores["layer_integrated_gradients"].lds == pytest.approx(1)
        assert verdict.scores["layer_integrated_gradients"].leave_one_out == pytest.approx(1)
        assert verdict.scores[CEILING].lds == pytest.approx(1)
        assert verdict.scores[CEILING].leave_one_out is None
        assert verdict.better == "layer_integrated_gradients"
        assert verdict.interval is not None
        assert verdict.interval[0] > 0
        assert verdict.difference == pytest.approx(1 - verdict.scores["attention_rollout"].lds)


def test_the_better_one_wins_on_either_side() -> None:
    true = weights()
    got = verdicts(
        additive(true), {"layer_integrated_gradients": -token_scores(true), "attention_rollout": token_scores(true)}
    )
    assert {verdict.better for verdict in got} == {"attention_rollout"}
    assert all(verdict.difference == pytest.approx(-2) for verdict in got)


def test_equals_are_never_told_apart() -> None:
    true = weights()
    world = additive(true, noise=1.0)
    same = verdicts(world, {"one": token_scores(true), "two": 5 * token_scores(true)})
    assert [(v.better, v.interval, v.difference) for v in same] == [(None, (0.0, 0.0), 0.0)] * TARGETS


def test_two_methods_that_know_nothing_are_seldom_told_apart() -> None:
    """The interval holds 0 in about 95 of 100 worlds."""
    won = 0
    for seed in range(0, 40, 4):
        world = additive(weights(seed), noise=1.0, subsets=40)
        one, two = (token_scores(weights(seed + k)) for k in (1, 2))
        noise = torch.from_numpy(np.random.default_rng(seed).normal(size=world.f_masked.shape))
        nothing = Effects(**{**vars(world), "f_masked": noise})
        won += sum(v.better is not None for v in verdicts(nothing, {"one": one, "two": two}))
    assert won <= 6  # of 30


def test_the_method_to_read_is_the_one_that_predicts_removals() -> None:
    """The true scores, and what is as good; not random ones, and none where F is noise."""
    world = additive(weights(), noise=0.2)
    methods = {
        "random": token_scores(weights(5)),
        "true": token_scores(weights()),
        "twice": 2 * token_scores(weights()),
    }
    for verdict in verdicts(world, methods):
        assert verdict.read is not None
        assert set(verdict.read) == {"true", "twice"}
    only = verdicts(world, {"random": token_scores(weights(5)), "wrong": -token_scores(weights())})
    assert all("wrong" not in (verdict.read or ()) for verdict in only)


def test_no_method_is_to_be_read_where_removals_are_noise() -> None:
    """In 5 of 100 targets one is by chance; here of 120 targets with 40 subsets."""
    found = []
    for seed in range(40):
        world = additive(weights(seed), noise=1.0, subsets=40)
        noise = torch.from_numpy(np.random.default_rng(1000 + seed).normal(size=world.f_masked.shape))
        nothing = Effects(**{**vars(world), "f_masked": noise})
        scores = {name: token_scores(weights(seed + k)) for k, name in enumerate(("one", "two", "three"))}
        found += [verdict.read for verdict in verdicts(nothing, scores)]
    assert len(found) == 120
    assert sum(read != () for read in found) <= 12


def test_methods_to_read_are_those_whose_interval_holds_zero() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=64)
    forecasts = {
        "near": f + rng.normal(size=64),
        "best": f + 0.8 * rng.normal(size=64),
        "far": f + 4 * rng.normal(size=64),
    }
    lds: dict[str, float | None] = {name: float(stats.spearmanr(one, f).statistic) for name, one in forecasts.items()}
    alone = np.repeat(np.arange(64), 2).reshape(-1, 2)
    got = methods_to_read(forecasts, f, lds, alone)
    assert got[0] == max(lds, key=lambda name: lds[name] or 0)
    for name in got[1:]:
        interval = difference_interval(forecasts[got[0]], forecasts[name], f, alone)
        assert interval is not None
        assert interval[0] <= 0 <= interval[1]
    assert "far" not in got
    assert methods_to_read(forecasts, f, dict.fromkeys(lds), alone) == ()


def test_lds_is_scipys_spearman_of_the_forecast() -> None:
    world, values = additive(weights(), noise=0.5), token_scores(weights(7))
    got = verdicts(world, {"a": values, "b": token_scores(weights(8))})
    for t, verdict in enumerate(got):
        forecast = [
            sum(float(values[t, start:end].sum()) for keep, (start, end) in zip(mask, UNITS, strict=True) if keep)
            for mask in world.kept
        ]
        want = stats.spearmanr(forecast, world.f_masked[t].numpy()).statistic
        assert verdict.scores["a"].lds == pytest.approx(want, abs=1e-12)
        want = stats.spearmanr(unit_sums(values, UNITS)[t], world.drop[t].numpy()).statistic
        assert verdict.scores["a"].leave_one_out == pytest.approx(want, abs=1e-12)


def test_the_interval_is_the_naive_bootstrap_of_pairs() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=30)
    one, two = f + rng.normal(size=30), (f + 2 * rng.normal(size=30)).round(0)
    pairs = rng.permutation(30).reshape(-1, 2)
    resamples = np.random.default_rng(5).integers(15, size=(RESAMPLES, 15))
    naive = [
        stats.spearmanr(one[draw], f[draw]).statistic - stats.spearmanr(two[draw], f[draw]).statistic
        for draw in (pairs[chosen].ravel() for chosen in resamples)
    ]
    got = difference_interval(one, two, f, pairs, seed=5)
    assert got == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=1e-12)


def test_constant_scores_and_constant_worlds_have_no_lds() -> None:
    true = weights()
    flat = torch.ones(TARGETS, SEQ, dtype=torch.float64) * 0
    for verdict in verdicts(additive(true), {"a": token_scores(true), "b": flat}):
        assert verdict.scores["b"].lds is verdict.better is verdict.difference is verdict.interval is None
    for verdict in verdicts(additive(0 * true), {"a": token_scores(true), "b": token_scores(true)}):
        assert verdict.scores["a"].lds is verdict.scores["a"].leave_one_out is None


@pytest.mark.parametrize("n_units", [0, 1])
def test_prompts_without_subsets_have_no_verdict(n_units: int) -> None:
    world = Effects(
        operator="delete",
        units=UNITS[:n_units],
        kept=half_subsets(n_units, 64, seed=0),
        f_full=torch.zeros(TARGETS, dtype=torch.float64),
        f_masked=torch.zeros(TARGETS, 0, dtype=torch.float64),
        f_without=torch.zeros(TARGETS, n_units, dtype=torch.float64),
        settings={},
    )
    got = verdicts(world, {"a": token_scores(weights()), "b": token_scores(weights(1))})
    assert [(v.better, v.scores["a"].lds) for v in got] == [(None, None)] * TARGETS


def test_random_positive_scores_foretell_nothing() -> None:
    """Where removing anything lowers F, a method is not credited for saying that less is left."""
    true = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, size=(TARGETS, N_UNITS)))
    world, lds = additive(true, subsets=128), []
    for seed in range(40):
        random = torch.from_numpy(np.random.default_rng(1 + seed).uniform(size=(TARGETS, N_UNITS)))
        for verdict in verdicts(world, {"a": token_scores(true), "b": token_scores(random)}):
            assert verdict.scores["a"].lds == pytest.approx(1)
            assert verdict.scores["b"].lds is not None
            lds.append(verdict.scores["b"].lds)
    # the spread of one is about 1 / sqrt(N_UNITS - 2) = 0.3, of the mean of 120 about 0.03
    assert abs(np.mean(lds)) < 0.1


def test_equal_scores_have_no_lds() -> None:
    true = weights()
    equal = torch.full((TARGETS, N_UNITS), 0.1, dtype=torch.float64)
    for verdict in verdicts(additive(true), {"a": token_scores(true), "b": token_scores(equal)}):
        assert verdict.scores["b"].lds is None


def test_sources_are_what_f_hangs_on() -> None:
    drop = np.array([0.2, 5.0, 1.6, 1.4, -7.0, 0.9])
    assert sources_of(drop) == (1, 2)  # 30 % of 5 nats is 1.5
    assert sources_of(drop / 5) == (1,)  # no other reaches a nat
    assert sources_of(drop / 6) == ()
    assert sources_of(np.zeros(0)) == ()


def test_missed_sources_by_counting_ranks() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 3, 8, 21, 40):
        scores = rng.normal(size=n)
        sources = tuple(sorted(rng.choice(n, size=min(n, 3), replace=False).tolist()))
        k = max(1, min(5, n // 4), len(sources))
        ranks = [1 + sum(abs(other) > abs(scores[unit]) for other in scores) for unit in range(n)]
        assert missed(scores, sources) == tuple(unit for unit in sources if ranks[unit] > k)
    assert missed(np.array([1.0, 1.0, 1.0, 1.0]), (1,)) == (1,)  # of equal scores the first one leads


def test_verdicts_say_which_method_misses_what() -> None:
    """Unit 4 alone matters: the method that ranks it first has it, the one that ranks it last misses it."""
    true = torch.full((TARGETS, N_UNITS), 0.1, dtype=torch.float64)
    true[:, 4] = 3.0
    for verdict in verdicts(additive(true), {"a": token_scores(true), "b": token_scores(1 / true)}):
        assert verdict.sources == (4,)
        assert verdict.missed == {"a": (), "b": (4,)}


def test_chance_is_five_percent_although_halves_come_in_pairs() -> None:
    """F has effects of three units together and none of single ones, as which a pair counts twice."""
    rng, p_values = np.random.default_rng(3), []
    for seed in range(300):
        kept = half_subsets(20, 128, seed=seed).numpy()
        signs, triples = 2.0 * kept - 1, np.array([rng.choice(20, 3, replace=False) for _ in range(60)])
        f = signs[:, triples].prod(axis=2) @ rng.normal(size=60)
        pairs = disjoint_pairs(kept)
        assert len(pairs) == 64
        p_values.append(spearman_p(kept @ rng.normal(size=20), f, independent=len(pairs)))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.08
