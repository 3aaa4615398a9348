"""Known sources: ranks, ties, and intervals over questions."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch

from llmxai.evaluation import estimate, paired_difference
from llmxai.evaluation.metrics import planted_truth, source_ranks
from llmxai.types import Generation, Part, Role


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


def test_a_sentence_is_ranked_by_its_sum_and_so_is_a_document() -> None:
    texts = ["Red", " one", ".", " Blue", " two", ".", " Why", "?"]
    words = tuple((i, i + 1) for i in range(len(texts)))
    parts = [
        Part("document", i, f"Document {i + 1}", text, first, first + n, spans_of(texts, first, n))
        for i, (text, first, n) in enumerate([("Red one. Blue two.", 0, 6), ("Why?", 6, 2)])
    ]
    generation = Generation(
        ids=(0,) * 9,
        prompt_len=8,
        roles=(*(Role.DOCUMENT,) * 8, Role.GENERATED),
        texts=(*texts, " x"),
        words=words,
        logprobs=None,
        stop="given",
        request={},
        parts=tuple(parts),
    )
    truth = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0], dtype=torch.bool)

    def ranks(*scores: float) -> dict[str, float]:
        return source_ranks(torch.tensor(scores, dtype=torch.float64), truth, range(8), generation)

    assert ranks(2, -2, 0, 0.5, 0, 0.5, 0, 0) == {"mrr_sentence": 1.0, "mrr_document": 1.0}, "not by the best token"
    assert ranks(1, 1, 0, 0, 1, 0, 4, 0) == {"mrr_sentence": 1 / 3, "mrr_document": 1 / 2}
    one = replace(generation, parts=(parts[0], replace(parts[1], kind="turn", title="user")))
    scores = torch.tensor([0, 0, 0, 0, 1, 0, 9, 9], dtype=torch.float64)
    assert source_ranks(scores, truth, range(8), one) == {"mrr_sentence": 1.0}, "a turn is no document"


def spans_of(texts: list[str], first: int, n: int) -> tuple[tuple[int, int, int], ...]:
    ends = list(accumulate(len(text) for text in texts[first : first + n]))
    return tuple((first + i, end - len(texts[first + i]), end) for i, end in enumerate(ends))


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
