"""Figures of agreement and dilution against closed forms, brute force and scipy."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from llmxai.crosscheck import rank_biased_overlap, rank_test
from llmxai.crosscheck.agreement import compare, corrected
from llmxai.methods.attention.dilution import dilutions
from llmxai.stats import jensen_shannon, kendall, spearman, top_k_overlap
from llmxai.types import Scores


def draws(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n), rng.normal(size=n)


@pytest.mark.parametrize("n", [3, 7, 8, 40])
@pytest.mark.parametrize("seed", range(4))
def test_spearman_is_scipys(n: int, seed: int) -> None:
    a, b = draws(n, seed)
    b = b.round(0) if seed % 2 else b  # with ties
    got = rank_test(a, b)
    assert got is not None
    assert got[0] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a, b) == pytest.approx(got[0], abs=1e-12)
    assert kendall(a, b) == pytest.approx(naive_tau_b(a, b), abs=1e-12)


def naive_tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall 1945: pairs in the same order minus pairs in the opposite one, over the pairs not tied on either side."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    x = np.array([np.sign(a[i] - a[j]) for i, j in pairs])
    y = np.array([np.sign(b[i] - b[j]) for i, j in pairs])
    return float(x @ y / np.sqrt(np.count_nonzero(x) * np.count_nonzero(y)))


@pytest.mark.parametrize("n", [3, 5, 6])
@pytest.mark.parametrize("ties", [False, True])
def test_p_is_the_share_of_permutations_that_agree_as_well(n: int, ties: bool) -> None:
    a, b = draws(n, seed=n)
    b = b.round(0) if ties and np.ptp(b.round(0)) else b
    observed = stats.spearmanr(a, b).statistic
    all_of_them = [stats.spearmanr(a[list(order)], b).statistic for order in permutations(range(n))]
    got = rank_test(a, b)
    assert got is not None
    assert got[1] == pytest.approx(np.mean(np.array(all_of_them) >= observed - 1e-9), abs=1e-12)


def test_p_of_many_features_is_sampled_and_repeatable() -> None:
    a = np.arange(30.0)
    got = rank_test(a, a)
    assert got == (pytest.approx(1.0), pytest.approx(1 / 2000))
    assert rank_test(*draws(30, 1), seed=5) == rank_test(*draws(30, 1), seed=5)
    against = rank_test(a, -a)
    assert against == (pytest.approx(-1.0), pytest.approx(1.0))


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0, 2.0]), ([], []), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_no_correlation_of_two_features_or_a_constant(a: list[float], b: list[float]) -> None:
    for figure in (spearman, rank_test, kendall, rank_biased_overlap):
        assert figure(np.array(a), np.array(b)) is None
        assert figure(np.array(b), np.array(a)) is None


def test_top_k_overlap_by_hand() -> None:
    a, b = np.array([9.0, 8.0, 7.0, 1.0, 0.0]), np.array([0.0, 5.0, 6.0, 7.0, 1.0])
    assert top_k_overlap(a, b, k=1) == 0
    assert top_k_overlap(a, b, k=2) == 0
    assert top_k_overlap(a, b, k=3) == pytest.approx(2 / 3)
    assert top_k_overlap(a, b, k=99) == 1
    assert top_k_overlap(a, a, k=2) == 1
    assert top_k_overlap(np.array([]), np.array([]), k=5) is None
    assert top_k_overlap(np.array([1.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0]), k=1) == 1, "the earlier wins a tie"


def rollout(rows: torch.Tensor, null: torch.Tensor) -> Scores:
    everything = torch.ones(rows.shape, dtype=torch.bool)
    return Scores("attention_rollout", rows, everything, signed=False, settings={}, null=null)


def normalised_entropy(mass: np.ndarray) -> float | None:
    """Of one row, all of whose positions are features."""
    row = torch.from_numpy(mass)[None]
    (found,) = dilutions(rollout(row, row), row >= 0, torch.tensor([len(mass)]))
    return found.entropy


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
    row = np.random.default_rng(0).random(14)
    assert jensen_shannon(row, 3 * row) == pytest.approx(0, abs=1e-12), "without a warning where rounding goes below 0"
    assert jensen_shannon(p, np.array([0.5, 0.5])) == pytest.approx(JS_BY_HAND)
    assert jensen_shannon(p * 0.9, q * 0.4) == pytest.approx(1), "rows are scaled to sum 1"


def test_jensen_shannon_of_rows_without_mass() -> None:
    assert jensen_shannon(np.zeros(3), np.ones(3)) == 1
    assert jensen_shannon(np.zeros(3), np.zeros(3)) == 0


# rank-biased overlap


def rbo_by_definition(a: np.ndarray, b: np.ndarray, p: float, depths: int = 4000) -> float:
    """(1 - p) sum of p^(d-1) A_d, with A_d of the whole rankings for every depth behind their end."""
    total = 0.0
    for d in range(1, depths + 1):
        # ties: all features with fewer than d features strictly before them
        first, second = ({i for i in range(len(x)) if np.count_nonzero(x > x[i]) < d} for x in (a, b))
        total += (1 - p) * p ** (d - 1) * 2 * len(first & second) / (len(first) + len(second))
    return total


@pytest.mark.parametrize("n", [3, 8, 25])
@pytest.mark.parametrize("ties", [False, True])
def test_rank_biased_overlap_is_its_infinite_sum(n: int, ties: bool) -> None:
    a, b = draws(n, seed=n)
    a, b = (a.round(0), b.round(0)) if ties else (a, b)
    for p in (0.5, 0.9):
        assert rank_biased_overlap(a, b, p=p) == pytest.approx(rbo_by_definition(a, b, p, depths=400), abs=1e-9)


def test_rank_biased_overlap_by_hand() -> None:
    a = np.array([3.0, 2.0, 1.0])
    assert rank_biased_overlap(a, a) == pytest.approx(1)
    # agreement at depth 1, 2, 3 of abc and bac: 0, 1, 1; so 1 minus the weight of the first depth
    assert rank_biased_overlap(a, np.array([2.0, 3.0, 1.0])) == pytest.approx(0.9)
    # a tie of the first two: depth 1 holds {a} and {a, b}, agreement 2/3
    assert rank_biased_overlap(a, np.array([2.0, 2.0, 1.0])) == pytest.approx(1 - 0.1 / 3)


def test_rank_biased_overlap_cares_for_the_top() -> None:
    base = np.arange(20.0, 0, -1)
    top, bottom = base.copy(), base.copy()
    top[[0, 1]], bottom[[18, 19]] = top[[1, 0]], bottom[[19, 18]]
    worse, better = rank_biased_overlap(base, top), rank_biased_overlap(base, bottom)
    assert worse is not None
    assert better is not None
    assert worse < better < 1


# all figures of a pair of rows, and of all targets


def test_all_figures_of_equal_scores() -> None:
    a = np.arange(1.0, 13)
    one = compare(a, 3 * a, np.arange(12), top_k=5)
    assert (one.spearman, one.kendall, one.top_k_overlap) == pytest.approx((1, 1, 1))
    assert one.rank_biased_overlap == pytest.approx(1)
    assert one.jensen_shannon == pytest.approx(0, abs=1e-12)
    assert one.adjusted_p is None


def test_few_features_have_an_overlap_only() -> None:
    one = compare(np.array([1.0, 2.0]), np.array([2.0, 1.0]), np.array([1, 0]), top_k=5)
    assert (one.top_k, one.top_k_overlap) == (2, 1)
    assert one.spearman is one.spearman_p is one.recency_p is one.kendall is one.jensen_shannon is None


def test_p_values_are_corrected_over_the_targets() -> None:
    made = [compare(*draws(20, seed), np.arange(20), top_k=5) for seed in range(5)]
    none = compare(np.ones(9), np.ones(9), np.arange(9), top_k=5)
    got = corrected([made[0], none, *made[1:]])
    larger = np.array([max(m.spearman_p or 0, m.recency_p or 0) for m in made])
    by_hand = np.empty(5)
    order = np.argsort(larger)
    least = 1.0
    for rank in range(5, 0, -1):
        least = min(least, larger[order[rank - 1]] * 5 / rank)
        by_hand[order[rank - 1]] = least
    assert [g.adjusted_p for g in (got[0], *got[2:])] == pytest.approx(by_hand.tolist())
    assert got[1].adjusted_p is None
    assert corrected([none]) == (none,)


def test_the_dilution_of_rows() -> None:
    rows = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    null = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    features = torch.tensor([[False, True, True, False], [False, True, True, True]])
    one, two = dilutions(rollout(rows, null), features, torch.tensor([3, 4]))
    assert (one.sink_mass, two.sink_mass) == (0.5, 0.7)
    assert (one.feature_mass, two.feature_mass) == (pytest.approx(0.5), pytest.approx(0.3))
    assert one.null_divergence == pytest.approx(0, abs=1e-12)
    assert two.null_divergence == pytest.approx(jensen_shannon(rows[1].numpy(), null[1].numpy()))
    assert two.entropy == pytest.approx(1)
    a, b = rows[0, :3].numpy(), rows[1, :3].numpy()
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert one.similarity == two.similarity == pytest.approx(cosine)
