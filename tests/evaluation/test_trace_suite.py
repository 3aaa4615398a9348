"""The suite `trace`: answers in steps, whose last word follows from the answer's earlier words alone."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest
import torch

from llmxai import load
from llmxai.evaluation import Case, Row, make_case, suite_rows
from llmxai.evaluation.planted_models import tracer_folder
from llmxai.evaluation.questions import DIGITS, MARKER, SECOND, TASKS, THIRD, WORDS, following, trace_answer, trace_text
from llmxai.generation import answer
from llmxai.methods import deletion_path, span_target, traced, with_missing_rows
from llmxai.methods.perturbation.removal import SetFunction, prompt_units
from llmxai.methods.tracing import ROW_NODES
from llmxai.models import LoadedModel
from llmxai.settings import Decoding

QUESTIONS = 3
"""Of each task."""


def test_following_is_a_permutation_without_fixed_points() -> None:
    assert sorted(map(following, WORDS)) == sorted(WORDS)
    assert all(following(word) != word for word in WORDS)


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_is_what_its_steps_say(task: str) -> None:
    """Against the tasks written out by hand, for many questions."""
    random = Random(1)
    for _ in range(50):
        text, sources, places = trace_text(random, task, 12)
        words = text.split(" ")
        assert (words[0], words[-1], len(words)) == (task, "?", 14)
        markers = (MARKER, SECOND, THIRD) if task == "sum" else (MARKER,)
        assert [words[place - 1] for place in places] == list(markers)
        assert [words[place] for place in places] == list(sources)
        said, follows = trace_answer(random, task, sources)
        assert all(follows)
        if task == "sum":
            a, b, c = map(int, sources)
            first, last = (a + b) % 10, (a + b + c) % 10
            assert said == f"{MARKER} {a} {SECOND} {b} = {first} {THIRD} {c} = {last}".split(" ")
            continue
        one = sources[0]
        two, three = following(one), following(following(one))
        expected = {
            "copy": [one, ";", one],
            "chain2": [one, ";", two],
            "chain3": [one, ";", two, ";", three],
            "think": [one, ";", two, ")", two],
        }[task]
        assert said == [*(["("] if task == "think" else []), MARKER, *expected]


def test_replaced_words_do_not_follow_and_the_rest_follows_from_them() -> None:
    random = Random(2)
    replaced = 0
    for _ in range(200):
        said, follows = trace_answer(random, "chain3", ("v1",), replaced=0.5)
        replaced += not follows[1]
        assert said[1] == "v1" or not follows[1]
        assert said[3] == following(said[1]) or not follows[3]
        assert follows[5]
        assert said[5] == following(said[3])
    assert 60 < replaced < 140
    assert set(DIGITS) == set("0123456789")


@pytest.fixture(scope="module")
def tracer() -> LoadedModel:
    return load(tracer_folder())


@pytest.fixture(scope="module")
def cases(tracer: LoadedModel) -> list[tuple[Row, Case]]:
    rows = list(suite_rows("trace", limit=QUESTIONS * len(TASKS), seed=5, options=None))
    return [
        (row, make_case(tracer, row, answer(tracer, row.asked, response=row.response), target="answer")) for row in rows
    ]


@pytest.mark.slow
def test_the_model_answers_nearly_every_question(tracer: LoadedModel, cases: list[tuple[Row, Case]]) -> None:
    """Its own greedy answer is the supplied one."""
    right = []
    for row, case in cases:
        own = answer(tracer, row.asked, decoding=Decoding(max_new_tokens=case.generation.n_targets))
        right.append(own.generated_ids == case.generation.generated_ids)
    assert mean(right) >= 0.95


@pytest.mark.slow
def test_tracing_leads_to_the_sources_where_direct_contributions_do_not(
    tracer: LoadedModel, cases: list[tuple[Row, Case]]
) -> None:
    """Of the last word's share, what reaches the true sources in the prompt: next to nothing directly."""
    followed, direct = [], []
    for _, case in cases:
        assert case.truth is not None
        scores = deletion_path(tracer, case.generation, targets=(case.target,), n_steps=ROW_NODES)
        units, _ = prompt_units(case.generation, units="token")
        rows = with_missing_rows(tracer, case.generation, (case.target,), scores)
        trace = traced(case.generation, (case.target,), rows, units=units)
        true = [number for number, is_true in enumerate(case.truth.tolist()) if is_true]
        followed.append(float(trace.total[0, true].sum()))
        direct.append(float(trace.direct[0, true].sum()))
    assert mean(direct) < 0.05
    assert mean(followed) > 0.25


@pytest.mark.slow
def test_the_sources_are_checked_causally(tracer: LoadedModel, cases: list[tuple[Row, Case]]) -> None:
    """Removing the true source costs the whole answer nats, its last word next to none: the words before it stay."""
    for _, case in cases:
        assert case.truth is not None
        whole = SetFunction(tracer, case.generation, span_target(case.generation), case.features)
        drop = whole.full() - whole.values(~torch.eye(len(case.features), dtype=torch.bool))
        sources = drop[case.truth]
        assert float(sources.max()) > 1.0
        last = SetFunction(tracer, case.generation, case.target, case.features)
        alone = last.full() - last.values(~torch.eye(len(case.features), dtype=torch.bool))
        assert float(alone[case.truth].abs().max()) < 0.5 * float(sources.max()), "the last word hangs on the answer's"
