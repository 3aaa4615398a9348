"""Planted truth: a small trained model on which rollout finds the source, and the real one on which it cannot."""

from __future__ import annotations

import pytest
import torch
from planted import Lookup, lookups, trained_lookup
from questions import FAMILIES, make_question

from llmxai.crosscheck import why_diluted
from llmxai.generation import encode_messages, force_response
from llmxai.methods import attention_rollout, measure_effects
from llmxai.methods.attention.dilution import dilutions
from llmxai.methods.features import moving_tokens
from llmxai.models import LoadedModel
from llmxai.settings import Removal
from llmxai.types import Dilution, Generation, Scores, predicting_position

TOP = 5


@pytest.fixture(scope="module")
def trained() -> LoadedModel:
    return trained_lookup(layers=2, seed=0)


@pytest.fixture(scope="module")
def questions(trained: LoadedModel) -> list[Lookup]:
    return lookups(trained, count=12, seed=1)


def figures(loaded: LoadedModel, generation: Generation) -> tuple[Scores, torch.Tensor, tuple[Dilution, ...]]:
    rollout = attention_rollout(loaded, generation)
    positions = [predicting_position(generation.prompt_len, t) for t in range(generation.n_targets)]
    seq = torch.arange(len(generation.ids))
    features = moving_tokens(generation, features="content") & (seq <= torch.tensor(positions)[:, None])
    return rollout, features, dilutions(rollout, features, torch.tensor(positions) + 1)


def test_rollout_of_a_small_trained_model_finds_the_source_and_is_not_flagged(
    trained: LoadedModel, questions: list[Lookup]
) -> None:
    found = []
    for question in questions:
        rollout, features, dilution = figures(trained, question.generation)
        for t, source in enumerate(question.sources):
            if source is not None:
                top = torch.where(features[t], rollout.values[t], -1.0).argsort(descending=True)[:TOP]
                found.append(source in top.tolist())
                assert why_diluted(dilution[t]) is None
    assert len(found) == 24
    assert sum(found) >= 0.8 * len(found)


def test_removal_from_a_small_trained_model_finds_the_source(trained: LoadedModel, questions: list[Lookup]) -> None:
    """The source and the question itself come first, but for answers that the model guesses right (one in six)."""
    right = []
    for question in questions:
        found = measure_effects(trained, question.generation, removal=Removal(units="token", subsets=0))
        for t, source in enumerate(question.sources):
            if source is not None:
                first_three = found.drop[t].argsort(descending=True)[:3].tolist()
                right.append(source in [found.units[unit][0] for unit in first_three])
    assert len(right) == 24
    assert sum(right) >= 0.7 * len(right)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_value_of_a_question_is_told_once(family: str) -> None:
    for seed in range(20):
        question = make_question(family, seed=seed)
        assert question == make_question(family, seed=seed)
        assert question.prompt.count(question.value) == question.response.count(question.value) == 1
        assert question.prompt.count(question.fact) == 1
        assert question.subject in question.fact
        assert question.value in question.fact


@pytest.mark.slow
def test_rollout_of_the_real_model_is_flagged(smollm2: LoadedModel) -> None:
    question = make_question("place", seed=0)
    tokens = encode_messages(smollm2, [{"role": "user", "content": question.prompt}])
    _, _, dilution = figures(smollm2, force_response(smollm2, tokens, response=question.response))
    assert all(why_diluted(one) is not None for one in dilution)
