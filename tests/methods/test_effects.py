"""Hidden words against a slow loop, and effects with their intervals where the truth is exact."""

from __future__ import annotations

import importlib
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from tiny import make_loaded
from torch import Tensor

from llmxai.evaluation.planted_models import build, contributions
from llmxai.generation import encode_messages, encode_prompt, force_response
from llmxai.methods import deletion_path, estimated, measure_effects, token_targets
from llmxai.methods.perturbation.effects import f_of_hidden
from llmxai.methods.perturbation.removal import MOST_UNITS, hidden_sets
from llmxai.models import LoadedModel
from llmxai.models.memory import ChunkSize
from llmxai.settings import Removal
from llmxai.types import Generation, Role, Scores


def spelled(prompt: list[str], answer: list[str], end: str | None = None) -> Generation:
    """One token per word, after a BOS; with an end mark, if there is one."""
    texts = ("<s>", *prompt, *answer, *([end] if end else []))
    first = 1 + len(prompt)
    roles = [Role.BOS, *[Role.USER] * len(prompt), *[Role.GENERATED] * len(answer), *[Role.TEMPLATE] * bool(end)]
    return Generation(
        ids=tuple(range(len(texts))),
        prompt_len=first,
        roles=tuple(roles),
        texts=texts,
        words=tuple((i, i + 1) for i in range(len(texts))),
        logprobs=None,
        stop="given",
        request={"prompt": " ".join(prompt)},
    )


# which words are hidden


def test_every_word_of_the_answer_but_the_last_is_hidden() -> None:
    assert hidden_sets(spelled(["why"], [" it", " is", " so"])) == (((2, 3),), ((3, 4),))


def test_before_an_end_mark_the_last_word_is_hidden_and_the_mark_is_not() -> None:
    assert hidden_sets(spelled(["why"], [" it", " is"], end="<|im_end|>")) == (((2, 3),), ((3, 4),))


def test_mentions_are_found_whatever_case_and_punctuation() -> None:
    generation = spelled(["Which", " France?", " france", " (FRANCE)"], [" The", " which", " end"])
    found = [one for one in hidden_sets(generation) if len(one) > 1]
    assert found == [((2, 3), (3, 4), (4, 5)), ((1, 2), (6, 7))], "the most mentions first"


def test_punctuation_alone_is_no_mention() -> None:
    assert hidden_sets(spelled(["a", ".", " b", "."], [" c", "."])) == (((5, 6),),)


def test_a_repeated_last_word_counts_as_a_mention() -> None:
    assert ((1, 2), (4, 5)) in hidden_sets(spelled(["Rome", " or"], [" not", " Rome"]))


def test_a_long_answer_is_hidden_in_larger_pieces() -> None:
    words = [f" w{i}" for i in range(3 * MOST_UNITS)]
    pieces = [one[0] for one in hidden_sets(spelled(["go"], words))]
    assert len(pieces) <= MOST_UNITS
    assert [i for start, end in pieces for i in range(start, end)] == list(range(2, 1 + len(words)))


# F with words hidden


def naive(loaded: LoadedModel, generation: Generation, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    """Log-prob of every generated token, with a 4-d mask: nothing behind a token of `ranges` attends to it."""
    n = len(generation.ids)
    mask = torch.zeros(n, n, dtype=torch.float64).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    for start, end in ranges:
        for i in range(start, end):
            mask[i + 1 :, i] = -torch.inf
    with torch.no_grad():
        logits = loaded.model(torch.tensor([generation.ids]), attention_mask=mask[None, None], use_cache=False).logits
    f = torch.log_softmax(logits[0].double(), dim=-1)
    return torch.stack([f[generation.prompt_len + t - 1, i] for t, i in enumerate(generation.generated_ids)])


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_hidden_words_against_a_loop_with_a_real_mask(
    architecture: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sdpa`: with the fused kernel, as for long texts."""
    monkeypatch.setattr(importlib.import_module("llmxai.methods.gradients.deletion_path"), "FUSED_FROM", 0)
    loaded = make_loaded(architecture, dtype=torch.float64, attn_implementation=kernel)
    asked = encode_messages(loaded, [{"role": "user", "content": "The capital of Italy, the capital?"}])
    generation = force_response(loaded, asked, response=" the capital is Rome")
    sets, targets = hidden_sets(generation), token_targets(generation)
    found = f_of_hidden(loaded, generation, targets, sets, size=ChunkSize(1024))
    assert found is not None
    assert found.shape == (len(targets), len(sets))
    for number, ranges in enumerate(sets):
        want, got = naive(loaded, generation, ranges), found[:, number]
        usable = ~got.isnan()
        assert torch.allclose(got[usable], want[usable], atol=1e-5)
        for t in range(len(targets)):
            said = generation.prompt_len + t
            inside = any(start < said < end for start, end in ranges)
            assert bool(got[t].isnan()) == (inside or said <= ranges[0][0])
    full = naive(loaded, generation, ())
    assert (found - full[:, None]).nan_to_num().abs().max() > 1e-3
    small = f_of_hidden(loaded, generation, targets, sets, size=ChunkSize(1))
    assert small is not None
    assert torch.allclose(found, small, atol=1e-9, equal_nan=True)


def test_a_model_without_attention_has_no_hidden_words() -> None:
    loaded = build()
    generation = force_response(loaded, encode_prompt(loaded, "w1 w2 w1 w3"), response=" w2 w4")
    found = measure_effects(loaded, generation)
    assert found.hidden == ()
    assert found.hidden_drop.shape == (2, 0)


def test_answer_off_hides_nothing(tiny_llama: LoadedModel) -> None:
    generation = force_response(tiny_llama, encode_prompt(tiny_llama, "a b a c"), response=" b a")
    assert measure_effects(tiny_llama, generation, removal=Removal(answer=False)).hidden == ()
    assert measure_effects(tiny_llama, generation).hidden == hidden_sets(generation)


# effects where the truth is exact: removing a word takes its contribution


def exact_question(seed: int) -> tuple[LoadedModel, Generation, list[float]]:
    loaded, random = build(), Random(seed)
    words = random.sample([f"w{i}" for i in range(40)], 12)
    asked = encode_prompt(loaded, " ".join(words))
    from llmxai.generation import with_foil

    generation = with_foil(loaded, force_response(loaded, asked, response=" w3"), foil=" w7")
    return loaded, generation, contributions(loaded, words, answer="w3", foil="w7")


@pytest.mark.parametrize("seed", range(3))
def test_effects_of_the_linear_model_are_its_contributions(seed: int) -> None:
    loaded, generation, truth = exact_question(seed)
    found = measure_effects(loaded, generation)
    np.testing.assert_allclose(found.drop[0].numpy(), truth, atol=1e-3)
    found = estimated(found, None)
    assert found.effect is not None
    np.testing.assert_allclose(found.effect[0].numpy(), truth, atol=0.01)
    assert found.ceiling[0] == pytest.approx(1, abs=1e-3)
    assert found.pair == (None,)


def test_effects_that_are_all_equal_show_only_in_the_whole_prompt(tiny_llama: LoadedModel) -> None:
    generation = force_response(tiny_llama, encode_prompt(tiny_llama, "a b c d e f g h i j k l"), response=" m")
    found = measure_effects(tiny_llama, generation)
    units, targets = len(found.units), len(found.f_full)
    halves = found.kept.double().sum(dim=1)  # one nat a unit: F is the same on all halves
    level = replace(found, f_masked=halves.expand(targets, -1), f_full=torch.full((targets,), float(units)).double())
    np.testing.assert_allclose(estimated(level, None).effect, np.ones((targets, units)), atol=1e-3)


def test_a_refused_prior_counts_as_none() -> None:
    loaded, generation, truth = exact_question(0)
    values = torch.zeros(1, len(generation.ids), dtype=torch.float64)
    values[0, : len(truth)] = 0.5 * torch.tensor(truth)
    prior = Scores("deletion_path", values, values != 0, signed=True, settings={})
    found = estimated(measure_effects(loaded, generation), prior)
    assert found.effect is not None
    np.testing.assert_allclose(found.effect[0].numpy(), truth, atol=1e-2)
    refused = estimated(measure_effects(loaded, generation), replace(prior, refused="no attention"))
    assert torch.equal(refused.effect, estimated(measure_effects(loaded, generation), None).effect)  # type: ignore[arg-type]


def test_the_interval_holds_the_estimate_and_has_a_width(tiny_llama: LoadedModel) -> None:
    generation = force_response(tiny_llama, encode_prompt(tiny_llama, "The capital of France is"), response=" Paris")
    found = estimated(measure_effects(tiny_llama, generation), deletion_path(tiny_llama, generation))
    assert found.effect is not None
    assert found.low is not None
    assert found.high is not None
    assert (found.low <= found.effect).all()
    assert (found.effect <= found.high).all()
    assert all(share is None or 0 <= share <= 1 for share in found.ceiling)


def test_without_subsets_nothing_is_estimated(tiny_llama: LoadedModel) -> None:
    generation = force_response(tiny_llama, encode_prompt(tiny_llama, "The capital of"), response=" Paris")
    found = estimated(measure_effects(tiny_llama, generation, removal=Removal(subsets=0)), None)
    assert found.effect is found.low is found.high is None


def test_two_words_that_act_together_are_named(tiny_llama: LoadedModel) -> None:
    generation = force_response(tiny_llama, encode_prompt(tiny_llama, "a b c d e f g h i j k l"), response=" m")
    found = measure_effects(tiny_llama, generation)
    kept = found.kept.double()
    f = kept[:, 1] + 4 * kept[:, 3] * kept[:, 8]
    assert estimated(replace(found, f_masked=f.expand(len(found.f_full), -1)), None).pair[0] == (3, 8)
