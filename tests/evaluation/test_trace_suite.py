"""The suite `trace`: answers in steps, whose last word follows from the answer's earlier words alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from random import Random
from statistics import mean

import pytest
import torch

from llmxai import load
from llmxai.evaluation import Case, Row, make_case, suite_rows
from llmxai.evaluation.metrics import planted_truth
from llmxai.evaluation.planted_models import tracer_folder
from llmxai.evaluation.questions import DIGITS, MARKER, SECOND, TASKS, THIRD, WORDS, following, trace_answer, trace_text
from llmxai.generation import answer
from llmxai.methods import deletion_path, span_target, traced_deletion_path
from llmxai.methods.perturbation.removal import SetFunction
from llmxai.models import LoadedModel
from llmxai.settings import Decoding
from llmxai.types import Scores

QUESTIONS = 8
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


def by_task(cases: list[tuple[Row, Case]], figure: Callable[[Case], float]) -> dict[str, float]:
    found = defaultdict(list)
    for row, case in cases:
        found[str(row.fields["task"])].append(figure(case))
    return {task: mean(values) for task, values in found.items()}


@pytest.mark.slow
def test_the_model_answers_nearly_every_question(tracer: LoadedModel, cases: list[tuple[Row, Case]]) -> None:
    """Its own greedy answer is the supplied one."""
    right = []
    for row, case in cases:
        own = answer(tracer, row.asked, decoding=Decoding(max_new_tokens=case.generation.n_targets))
        right.append(own.generated_ids == case.generation.generated_ids)
    assert mean(right) >= 0.95


@pytest.mark.slow
def test_tracing_finds_the_sources_where_direct_contributions_do_not(
    tracer: LoadedModel, cases: list[tuple[Row, Case]]
) -> None:
    """Reciprocal rank of the first true source among the prompt's words: at least 0.9 traced, at most 0.4 directly."""

    def rank(method: Callable[..., Scores]) -> Callable[[Case], float]:
        def figure(case: Case) -> float:
            values = method(tracer, case.generation, targets=(case.target,)).values[0]
            assert case.truth is not None
            return planted_truth(values[list(case.features)].double(), case.truth)["mrr"]

        return figure

    followed, direct = by_task(cases, rank(traced_deletion_path)), by_task(cases, rank(deletion_path))
    assert min(followed.values()) >= 0.9, followed
    assert mean(direct.values()) <= 0.4, direct


@pytest.mark.slow
def test_the_sources_are_checked_causally(tracer: LoadedModel, cases: list[tuple[Row, Case]]) -> None:
    """Removing the true source lowers the log-prob of the whole answer more than removing any other word."""
    hits = []
    for _, case in cases:
        assert case.truth is not None
        whole = SetFunction(tracer, case.generation, span_target(case.generation), case.features)
        drop = whole.full() - whole.values(~torch.eye(len(case.features), dtype=torch.bool))
        sources = drop[case.truth]
        assert float(sources.max()) > 1.0
        hits.append(bool(case.truth[int(drop.argmax())]))
        last = SetFunction(tracer, case.generation, case.target, case.features)
        alone = last.full() - last.values(~torch.eye(len(case.features), dtype=torch.bool))
        assert float(alone[case.truth].abs().max()) < 0.5 * float(sources.max()), "the last word hangs on the answer's"
    assert mean(hits) >= 0.9
