"""The algebra of tracing against slow references: an explicit inverse, sums over all paths, and a plain loop."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmxai.trace import Trace, falls, unit_shares
from llmxai.types import Effects

# A -> x (0.5), B -> x (0.5); A -> y (0.2), x -> y (0.8); the target: y (0.6), x (0.3), B (0.1)
HAND = Trace(
    method="by hand",
    units=((0, 1), (1, 2), (2, 3), (3, 4)),
    n_sources=2,
    direct=torch.tensor([[0.0, 0.1, 0.3, 0.6]], dtype=torch.float64),
    steps=torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.0, 0.8, 0.0]], dtype=torch.float64),
    effects=torch.tensor([[2.0, 1.0, math.nan, math.nan], [0.25, 0.0, 3.0, math.nan]], dtype=torch.float64),
)


def drawn(seed: int, *, sources: int, answer: int, rows: int) -> Trace:
    """Random shares with causal steps; some rows leave a rest, some are empty."""
    rng = np.random.default_rng(seed)
    steps = rng.random((answer, sources + answer)) * (rng.random((answer, sources + answer)) < 0.7)
    steps *= np.tri(answer, sources + answer, sources - 1)
    direct = rng.random((rows, sources + answer))
    scale = np.array([0.0, 0.5, 1.0])
    steps, direct = (
        each / np.maximum(each.sum(axis=1, keepdims=True), 1e-9) * rng.choice(scale, (len(each), 1))
        for each in (steps, direct)
    )
    units = tuple((i, i + 1) for i in range(sources + answer))
    nothing = torch.full((answer, sources + answer), math.nan, dtype=torch.float64)
    return Trace("drawn", units, sources, torch.from_numpy(direct), torch.from_numpy(steps), nothing)


def paths(trace: Trace, row: int, source: int) -> dict[tuple[int, ...], float]:
    """Every path from a source to a target, with the product of its shares."""
    n, found = trace.n_sources, {}
    answer = range(n, len(trace.units))
    for size in range(len(answer) + 1):
        for between in combinations(answer, size):
            path = (source, *between)
            carried = float(trace.direct[row, path[-1]])
            for earlier, later in pairwise(path):
                carried *= float(trace.steps[later - n, earlier])
            found[path] = carried
    return found


def test_by_hand() -> None:
    """A: 0.3 * 0.5 + 0.6 * (0.2 + 0.8 * 0.5); B: 0.1 + 0.3 * 0.5 + 0.6 * 0.8 * 0.5."""
    assert HAND.total.tolist() == [pytest.approx([0.51, 0.49], abs=1e-15)]
    assert HAND.rest.tolist() == [pytest.approx(0.0, abs=1e-15)]
    first, second = HAND.sources(HAND.direct[0], torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    assert (first.unit, first.direct, second.unit, second.direct) == (0, 0.0, 1, 0.1)
    assert [(step.unit, step.share, step.effect) for step in first.path] == [
        (0, 0.5, 2.0),
        (2, 0.8, 3.0),
        (3, 0.6, 0.4),
    ]
    assert [(step.unit, step.effect) for step in second.path] == [(1, 1.0), (2, 3.0), (3, 0.4)]


def test_shares_through_the_words_of_the_answer_by_hand() -> None:
    """x: 0.3 + 0.6 * 0.8; y: 0.6. With y on the contributions of both, y is shared."""
    assert HAND.carried.tolist() == [pytest.approx([0.78, 0.6], abs=1e-15)]
    assert HAND.shared == ()
    assert replace(HAND, rows=((2, 3), (2, 4))).shared == (3,)
    assert replace(HAND, rows=(None, (3, 4))).shared == ()


def test_what_was_not_measured_is_none() -> None:
    nothing = torch.full((4,), math.nan, dtype=torch.float64)
    steps = [step for source in HAND.sources(HAND.direct[0], nothing) for step in source.path]
    assert [step.effect for step in steps if step.unit == 3] == [None, None]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 6))
def test_the_total_is_that_of_the_inverse_and_of_all_paths(seed: int, sources: int, answer: int) -> None:
    """Float64, to 1e-12: the inverse of (I - steps) written out, and every path by itself."""
    trace = drawn(seed, sources=sources, answer=answer, rows=3)
    steps, direct = trace.steps.numpy(), trace.direct.numpy()
    inverse = np.linalg.inv(np.eye(answer) - steps[:, sources:])
    expected = direct[:, :sources] + direct[:, sources:] @ inverse @ steps[:, :sources]
    np.testing.assert_allclose(trace.total.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(trace.carried.numpy(), direct[:, sources:] @ inverse, atol=1e-12)
    for row in range(3):
        for source in range(sources):
            every = paths(trace, row, source)
            assert float(trace.total[row, source]) == pytest.approx(sum(every.values()), abs=1e-12)
            if max(every.values()) > 0:
                chosen = trace.path(trace.direct[row], source)
                assert every[chosen] == pytest.approx(max(every.values()), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 8))
def test_nothing_is_lost_or_made(seed: int, sources: int, answer: int) -> None:
    trace = drawn(seed, sources=sources, answer=answer, rows=4)
    assert (trace.total >= 0).all()
    assert (trace.total.sum(dim=1) + trace.rest).tolist() == pytest.approx([1.0] * 4, abs=1e-12)
    whole = [sum(row) > 1 - 1e-9 for row in trace.steps.tolist()]
    if all(whole) and float(trace.direct.sum(dim=1).min()) > 1 - 1e-9:
        assert float(trace.rest.max()) < 1e-9


def test_rest_is_what_ends_before_the_prompt() -> None:
    """An answer's word without any positive contribution hands nothing on."""
    trace = Trace(
        method="",
        units=((0, 1), (1, 2)),
        n_sources=1,
        direct=torch.tensor([[0.25, 0.75]], dtype=torch.float64),
        steps=torch.zeros(1, 2, dtype=torch.float64),
        effects=torch.full((1, 2), math.nan, dtype=torch.float64),
    )
    assert (trace.total.tolist(), trace.rest.tolist()) == ([[0.25]], [0.75])


def test_without_earlier_words_total_is_direct() -> None:
    trace = drawn(3, sources=4, answer=0, rows=2)
    torch.testing.assert_close(trace.total, trace.direct)


def test_shares_are_of_positive_unit_sums() -> None:
    """Against a loop: tokens of a unit are summed with their signs first; tokens of no unit count as one unit."""
    values = torch.tensor([[3.0, -1.0, -2.0, 1.0, 4.0, -1.0], [-1.0, 0.0, -1.0, 0.0, 0.0, 0.0]])
    units = [(0, 2), (2, 4), (4, 5)]
    expected = []
    for row in values.tolist():
        sums = [max(0.0, sum(row[a:b])) for a, b in units]
        other = max(0.0, row[5])
        total = sum(sums) + other
        expected.append([one / total if total else 0.0 for one in sums])
    assert unit_shares(values, units).tolist() == expected == [[1 / 3, 0.0, 2 / 3], [0.0, 0.0, 0.0]]
    assert unit_shares(torch.tensor([[1.0, 3.0]]), [(0, 1)]).tolist() == [[0.25]]


def test_falls_are_removals_of_the_prompt_and_hidden_words_of_the_answer() -> None:
    effects = Effects(
        operator="delete",
        units=((0, 1), (1, 3)),
        kept=torch.zeros(0, 2, dtype=torch.bool),
        f_full=torch.tensor([-1.0, -2.0], dtype=torch.float64),
        f_masked=torch.zeros(2, 0, dtype=torch.float64),
        f_without=torch.tensor([[-3.0, -1.0], [-2.0, -2.5]], dtype=torch.float64),
        settings={},
        hidden=(((3, 4),), ((0, 1), (3, 4))),
        f_hidden=torch.tensor([[-1.5, -9.0], [math.nan, -9.0]], dtype=torch.float64),
    )
    found = falls(effects, ((0, 1), (1, 3), (3, 4), (4, 5))).tolist()
    assert found[0][:3] == [2.0, 0.0, 0.5]
    assert found[1][:2] == [0.0, 0.5]
    assert [math.isnan(value) for value in found[0]] == [False, False, False, True]
    assert [math.isnan(value) for value in found[1]] == [False, False, True, True]
