"""Rank agreement, dilution and the status rule against closed forms and brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from llmxai.crosscheck import RULE, cross_check, jensen_shannon, normalised_entropy, spearman, top_k_overlap
from llmxai.types import Attribution, Generation, Role, Rollout, Status


def draws(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(size=n)


@pytest.mark.parametrize("n", [3, 7, 8, 40])
@pytest.mark.parametrize("seed", range(4))
def test_spearman_is_scipys(n: int, seed: int) -> None:
    a, b = draws(n, seed)
    b = b.round(0) if seed % 2 else b  # with ties
    got = spearman(a, b)
    assert got is not None
    assert got[0] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("n", [3, 5, 6])
@pytest.mark.parametrize("ties", [False, True])
def test_p_is_the_share_of_permutations_that_agree_as_well(n: int, ties: bool) -> None:
    a, b = draws(n, seed=n)
    b = b.round(0) if ties and np.ptp(b.round(0)) else b
    observed = stats.spearmanr(a, b).statistic
    all_of_them = [stats.spearmanr(a[list(order)], b).statistic for order in permutations(range(n))]
    got = spearman(a, b)
    assert got is not None
    assert got[1] == pytest.approx(np.mean(np.array(all_of_them) >= observed - 1e-9), abs=1e-12)


def test_p_of_many_features_is_sampled_and_repeatable() -> None:
    a = np.arange(30.0)
    got = spearman(a, a)
    assert got == (pytest.approx(1.0), pytest.approx(1 / 2000))
    assert spearman(*draws(30, 1), seed=5) == spearman(*draws(30, 1), seed=5)
    against = spearman(a, -a)
    assert against == (pytest.approx(-1.0), pytest.approx(1.0))


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0, 2.0]), ([], []), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_no_spearman_of_two_features_or_a_constant(a: list[float], b: list[float]) -> None:
    assert spearman(np.array(a), np.array(b)) is None
    assert spearman(np.array(b), np.array(a)) is None


def test_top_k_overlap_by_hand() -> None:
    a, b = np.array([9.0, 8.0, 7.0, 1.0, 0.0]), np.array([0.0, 5.0, 6.0, 7.0, 1.0])
    assert top_k_overlap(a, b, k=1) == 0
    assert top_k_overlap(a, b, k=2) == 0
    assert top_k_overlap(a, b, k=3) == pytest.approx(2 / 3)
    assert top_k_overlap(a, b, k=99) == 1
    assert top_k_overlap(a, a, k=2) == 1
    assert top_k_overlap(np.array([]), np.array([]), k=5) is None
    assert top_k_overlap(np.array([1.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0]), k=1) == 1, "the earlier wins a tie"


def test_entropy_in_closed_form() -> None:
    assert normalised_entropy(np.full(8, 0.1)) == pytest.approx(1)
    assert normalised_entropy(np.array([0.0, 0.7, 0.0])) == pytest.approx(0)
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2)
    assert normalised_entropy(np.array([0.1, 0.3])) == pytest.approx(quarter)
    assert normalised_entropy(np.array([1.0])) is None
    assert normalised_entropy(np.zeros(4)) is None


# p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4)
JS_BY_HAND = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5 * np.log2(2))


def test_jensen_shannon_in_closed_form() -> None:
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon(p, q) == pytest.approx(1)
    assert jensen_shannon(p, p) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(p, np.array([0.5, 0.5])) == pytest.approx(JS_BY_HAND)
    assert jensen_shannon(p * 0.9, q * 0.4) == pytest.approx(1), "rows are scaled to sum 1"


# the status of a token

SEQ = 10


def generation() -> Generation:
    roles = (Role.BOS, *(Role.USER,) * (SEQ - 2), Role.GENERATED)
    return Generation(
        ids=tuple(range(SEQ)),
        prompt_len=SEQ - 1,
        roles=roles,
        texts=("a",) * SEQ,
        words=((0, SEQ),),
        logprobs=None,
        stop="given",
        request={"prompt": "a"},
    )


def attribution(values: torch.Tensor, *, converged: bool = True, features: slice = slice(1, SEQ - 1)) -> Attribution:
    chosen = torch.zeros(1, SEQ, dtype=torch.bool)
    chosen[0, features] = True
    one = torch.ones(1, dtype=torch.float64)
    return Attribution(
        method="layer_integrated_gradients",
        values=(values * chosen)[:1].double(),
        features=chosen,
        f_input=one,
        f_baseline=0 * one,
        gap=0.5 * one,
        local_error=0.5 * one,
        tolerance=0.02 * one,
        nodes=(4,),
        converged=(converged,),
        settings={},
    )


def rollout(row: torch.Tensor, null: torch.Tensor) -> Rollout:
    return Rollout(
        method="attention_rollout",
        rows=row[None].double(),
        null_rows=null[None].double(),
        lost_mass=torch.zeros(1, dtype=torch.float64),
        settings={},
    )


RISING = torch.cat([torch.linspace(0.01, 1, SEQ - 1), torch.zeros(1)])
UP = RISING / RISING.sum()
DOWN = torch.cat([UP[: SEQ - 1].flip(0), torch.zeros(1)])
SINK = torch.tensor([0.95, *[0.05 / (SEQ - 2)] * (SEQ - 2), 0.0])


@pytest.mark.parametrize(
    ("status", "words", "converged", "row", "null", "features"),
    [
        (Status.UNCONVERGED, "0.5 nats and 0.02 is allowed", False, UP, DOWN, slice(1, SEQ - 1)),
        (Status.UNCONVERGED, "misses completeness", False, SINK, SINK, slice(1, SEQ - 1)),
        (Status.DILUTED, "95.0% of its mass on the first token", True, SINK, DOWN, slice(1, SEQ - 1)),
        (Status.DILUTED, "0.000 bits from what the mask", True, UP, UP, slice(1, SEQ - 1)),
        (Status.AGREE, "Spearman 1.00", True, UP, DOWN, slice(1, SEQ - 1)),
        (Status.DISAGREE, "Spearman -1.00", True, DOWN, UP, slice(1, SEQ - 1)),
        (Status.DISAGREE, "Too few features", True, UP, DOWN, slice(1, 3)),
    ],
)
def test_the_status_rule(
    status: Status, words: str, converged: bool, row: torch.Tensor, null: torch.Tensor, features: slice
) -> None:
    check = cross_check(
        generation(), attribution(-RISING[None], converged=converged, features=features), rollout(row, null)
    )[0]
    assert check.status == status
    assert words in check.reason


def test_the_figures_of_a_check() -> None:
    check = cross_check(generation(), attribution(-RISING[None]), rollout(UP, DOWN))[0]
    assert check.spearman == pytest.approx(1)
    assert check.spearman_p is not None
    assert check.spearman_p < 0.01
    assert (check.top_k, check.top_k_overlap) == (RULE.top_k, 1)
    assert check.sink_mass == pytest.approx(float(UP[0]))
    assert check.feature_mass == pytest.approx(float(UP[1:].sum()))
    assert check.null_divergence == pytest.approx(jensen_shannon(UP.double().numpy(), DOWN.double().numpy()))
    assert check.entropy == pytest.approx(normalised_entropy(UP[1 : SEQ - 1].double().numpy()))


def test_few_features_have_no_correlation() -> None:
    check = cross_check(generation(), attribution(RISING[None], features=slice(1, 3)), rollout(UP, DOWN))[0]
    assert (check.spearman, check.spearman_p, check.top_k) == (None, None, 2)


def test_thresholds_are_the_rules_own() -> None:
    assert (RULE.version, RULE.least_divergence, RULE.most_sink, RULE.significance) == (1, 0.05, 0.9, 0.05)
