"""Which rows tracing computes, and what units without a row of their own hand on: against slow references."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import answered

from llmxai import Explanation, IntegratedGradients, Settings, explain, load_explanation
from llmxai.errors import UserError
from llmxai.methods import METHODS, chosen_targets, deletion_path, missing_rows, traced, tracing, with_missing_rows
from llmxai.methods.perturbation.removal import prompt_units
from llmxai.methods.tracing import Followed, followed_units, most_carried, row_of
from llmxai.models import LoadedModel
from llmxai.settings import Tolerance
from llmxai.trace import Trace
from llmxai.types import Generation, Scores

RESPONSE = " Paris, and the answer is Rome, and the sea is blue"
ROUGH = Tolerance(relative=0.3, absolute=0.02)


@pytest.fixture
def said(tiny_llama: LoadedModel) -> Generation:
    return answered(tiny_llama, response=RESPONSE)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of two units at most."""
    monkeypatch.setattr(tracing, "MOST_ROWS", 2)
    return 2


def direct(loaded: LoadedModel, generation: Generation, *asked: str) -> tuple[tuple[object, ...], Scores]:
    targets = chosen_targets(generation, asked)
    return targets, deletion_path(loaded, generation, targets=targets, tolerance=ROUGH)


def test_with_a_row_for_every_unit_it_is_the_exact_trace(
    tiny_llama: LoadedModel, said: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rows of all tokens, which are targets and so are not computed for tracing (float32, to 1e-5)."""
    monkeypatch.setattr(tracing, "MOST_ROWS", 1000)
    units = prompt_units(said)[0]
    (target,), scores = direct(tiny_llama, said, "answer")
    found = traced(said, [target], with_missing_rows(tiny_llama, said, [target], scores), units=units)
    everything, rows = direct(tiny_llama, said, "answer", "token")
    expected = traced(said, everything, with_missing_rows(tiny_llama, said, everything, rows), units=units)
    assert found.shared == expected.shared == ()
    torch.testing.assert_close(found.total[0], expected.total[0], atol=1e-5, rtol=0)


def test_few_rows_are_computed_and_those_that_carry_most(
    tiny_llama: LoadedModel, said: Generation, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shares through every unit by the inverse written out; the largest get rows, and nothing else is computed."""
    (target,), scores = direct(tiny_llama, said, "answer")
    asked = []
    entry = METHODS["deletion_path"]

    def counted(*arguments: object, **options: object) -> Scores:
        asked.extend(options["targets"])
        return entry.function(*arguments, **options)

    monkeypatch.setitem(tracing.METHODS, "deletion_path", type(entry)(**{**vars(entry), "function": counted}))
    followed = with_missing_rows(tiny_llama, said, [target], scores)
    first = traced(said, [target], Followed((target,), scores), units=prompt_units(said)[0])
    n, m = first.n_sources, len(first.steps)
    through = first.direct.numpy()[0, n:] @ np.linalg.inv(np.eye(m) - first.steps.numpy()[:, n:])
    own = followed_units(said)
    expected = [own[i] for i in sorted(range(m), key=lambda i: -through[i])[:few]]
    assert [one.tokens for one in asked] == expected
    assert followed.targets == (target, *asked)
    assert len(followed.scores.values) == 1 + few


def test_a_unit_without_a_row_hands_on_what_comes_before_it_in_its_passage(
    tiny_llama: LoadedModel, said: Generation, few: int
) -> None:
    """Against a loop over tokens and units, and the totals against the inverse (float64, to 1e-12)."""
    targets, scores = direct(tiny_llama, said, "answer", "0:7")
    followed = with_missing_rows(tiny_llama, said, targets, scores)
    sources = prompt_units(said)[0]
    trace = traced(said, targets, followed, units=sources)
    own, units = followed_units(said), trace.units
    steps = np.zeros((len(own), len(units)))
    assert trace.rows[-1] is None  # no target sees the last word
    for i, unit in enumerate(own[:-1]):
        row, passage = row_of(followed.targets, unit) or ([], None)
        assert trace.rows[i] == passage
        if passage != unit:
            assert passage == (targets[1].tokens if unit[1] <= targets[1].tokens[1] else targets[0].tokens)
        sums = [0.0] * (len(units) + 1)
        for token in range(unit[0]):
            owners = [k for k, (start, end) in enumerate(units) if start <= token < end] or [len(units)]
            sums[owners[0]] += sum(float(followed.scores.values[r, token]) for r in row)
        positive = [max(0.0, one) for one in sums]
        for k in range(len(sources) + i):
            steps[i, k] = positive[k] / sum(positive) if sum(positive) else 0.0
    np.testing.assert_allclose(trace.steps.numpy(), steps, atol=1e-12)
    assert trace.shared == tuple(len(sources) + i for i, unit in enumerate(own[:-1]) if trace.rows[i] != unit)
    assert len(trace.shared) == len(own) - 1 - few
    n = len(sources)
    inverse = np.linalg.inv(np.eye(len(own)) - steps[:, n:])
    expected = trace.direct.numpy()[:, :n] + trace.direct.numpy()[:, n:] @ inverse @ steps[:, :n]
    np.testing.assert_allclose(trace.total.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose((trace.total.sum(dim=1) + trace.rest).numpy(), 1.0, atol=1e-12)


def test_where_no_target_holds_the_earlier_words_one_row_of_all_is_computed(
    tiny_llama: LoadedModel, said: Generation, few: int
) -> None:
    (target,), scores = direct(tiny_llama, said, "blue")
    followed = with_missing_rows(tiny_llama, said, [target], scores)
    missing = [one.tokens for one in missing_rows(said, [target])]
    assert followed.targets[1].tokens == (missing[0][0], missing[-1][1])
    assert len(followed.targets) <= 2 + few
    trace = traced(said, [target], followed, units=prompt_units(said)[0])
    assert {row for row in trace.rows if row is not None} <= {one.tokens for one in followed.targets}
    np.testing.assert_allclose((trace.total.sum(dim=1) + trace.rest).numpy(), 1.0, atol=1e-12)


def test_units_that_carry_little_get_no_row(
    tiny_llama: LoadedModel, said: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    (target,), scores = direct(tiny_llama, said, "answer")
    more = missing_rows(said, [target])
    monkeypatch.setattr(tracing, "LEAST_CARRIED", 1.1)
    assert most_carried(said, Followed((target,), scores), 1, more) == ()


@pytest.fixture
def long(tiny_llama: LoadedModel, few: int) -> Explanation:
    assert few == tracing.MOST_ROWS
    settings = Settings(gradients=IntegratedGradients(max_nodes=8))
    return explain(tiny_llama, "The capital of France", response=RESPONSE, targets="answer", settings=settings)


def test_the_folder_keeps_whose_contributions_were_followed(long: Explanation, tmp_path: Path) -> None:
    assert long.trace is not None
    assert long.trace.shared
    found = load_explanation(long.save(tmp_path / "long")).trace
    assert found is not None
    assert isinstance(found, Trace)
    assert (found.rows, found.shared) == (long.trace.rows, long.trace.shared)
    torch.testing.assert_close(found.total, long.trace.total, atol=1e-12, rtol=0)


def test_the_page_says_which_words_share_their_sources(long: Explanation, few: int) -> None:
    assert long.trace is not None
    page = long.to_html()
    n = len([row for row in long.trace.rows if row is not None])
    assert f"of its {n} parts the {few} that carry the most pass on sources of their own" in page
    assert len(long.trace.shared) == n - few
    marked = "in the answer ≈</span>" in page
    paths = [step.unit for source in long[:].traced() for step in source.path]
    assert marked == bool(set(paths) & set(long.trace.shared))


@pytest.mark.parametrize("row", [[0, 1], [9, 9], [0, 10**6]])
def test_a_row_of_tokens_that_do_not_hold_the_unit_is_refused(
    long: Explanation, tmp_path: Path, row: list[int]
) -> None:
    folder = long.save(tmp_path / "long")
    path = folder / "explanation.json"
    document = json.loads(path.read_text())
    number, unit = next((i, unit) for i, unit in enumerate(document["trace"]["units"]) if unit["kind"] == "answer")
    unit["row"] = row
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"trace\.units\.{number}\.row is .*; expected a range that holds"):
        load_explanation(folder)


def test_a_folder_from_before_rows_were_named_has_each_its_own(long: Explanation, tmp_path: Path) -> None:
    folder = long.save(tmp_path / "long")
    path = folder / "explanation.json"
    document = json.loads(path.read_text())
    for unit in document["trace"]["units"]:
        unit.pop("row", None)
    path.write_text(json.dumps(document))
    found = load_explanation(folder).trace
    assert found is not None
    assert (found.shared, found.rows) == ((), found.units[found.n_sources :])
