"""Several prompts in one pass: the same answers as one by one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from tiny import ARCHITECTURES, make_classifier, make_encoder_decoder, make_loaded

from llmxai import explain, explain_many
from llmxai.errors import OptionError, PromptError
from llmxai.generation import Decoding, PromptTokens, encode_prompt, generate, generate_many
from llmxai.models import LoadedModel, adapter_of
from llmxai.settings import IntegratedGradients, Settings

TEXTS = ("Hello", "The capital of France is Paris, and the capital of Italy is", "Which city?", "A person asked")
SHORT = Decoding(max_new_tokens=5)


def gradients_of(max_nodes: int) -> Settings:
    return Settings(gradients=IntegratedGradients(max_nodes=max_nodes), removal=None)


def prompts(loaded: LoadedModel) -> list[PromptTokens]:
    return [encode_prompt(loaded, text) for text in TEXTS]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_gives_what_one_by_one_gives(architecture: str) -> None:
    """Left padding moves no position and is seen by nobody: the same ids, log-probs within 1e-4 nats."""
    loaded = make_loaded(architecture)
    alone = [generate(loaded, prompt, decoding=SHORT) for prompt in prompts(loaded)]
    together = generate_many(loaded, prompts(loaded), decoding=SHORT, batch_size=3)
    for one, other in zip(alone, together, strict=True):
        assert (one.ids, one.texts, one.roles, one.stop) == (other.ids, other.texts, other.roles, other.stop)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert dict(one.decoding) == dict(other.decoding)


def test_a_row_that_ends_early_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    alone = [generate(loaded, prompt, decoding=SHORT) for prompt in prompts(loaded)]
    ends = alone[0].generated_ids[1]  # the first row's second token shall end it
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", ends)
    one_by_one = [generate(loaded, prompt, decoding=SHORT) for prompt in prompts(loaded)]
    together = generate_many(loaded, prompts(loaded), decoding=SHORT)
    assert [each.ids for each in together] == [each.ids for each in one_by_one]
    assert [each.stop for each in together] == [each.stop for each in one_by_one]
    assert together[0].n_targets == 2
    assert together[0].stop == "eos"
    assert len({each.n_targets for each in together}) > 1


def test_passes_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    batches: list[int] = []
    whole = loaded.model.generate

    def counted(*, inputs: torch.Tensor, **options: object) -> object:
        batches.append(len(inputs))
        return whole(inputs=inputs, **options)

    monkeypatch.setattr(loaded.model, "generate", counted)
    generate_many(loaded, prompts(loaded), decoding=SHORT, batch_size=3)
    assert batches == [3, 1]


def test_sampling_has_a_stream_for_every_prompt() -> None:
    loaded = make_loaded("llama")
    sampled = Decoding(max_new_tokens=5, temperature=1.5, seed=4)
    alone = [generate(loaded, prompt, decoding=sampled).ids for prompt in prompts(loaded)]
    assert [each.ids for each in generate_many(loaded, prompts(loaded), decoding=sampled)] == alone


def test_a_prompt_near_the_end_of_the_context_keeps_its_own_room() -> None:
    loaded = make_loaded("llama", max_position_embeddings=16)
    alone = [generate(loaded, prompt, decoding=SHORT) for prompt in prompts(loaded)]
    together = generate_many(loaded, prompts(loaded), decoding=SHORT)
    assert [each.ids for each in together] == [each.ids for each in alone]
    assert len({each.decoding["max_new_tokens"] for each in alone}) > 1


@pytest.mark.parametrize("loaded", [make_loaded("lfm2"), make_encoder_decoder("t5")], ids=["lfm2", "t5"])
def test_others_go_one_by_one(loaded: LoadedModel) -> None:
    assert not adapter_of(loaded.model).keeps_prefix(loaded.model)
    alone = [generate(loaded, prompt, decoding=SHORT).ids for prompt in prompts(loaded)]
    assert [each.ids for each in generate_many(loaded, prompts(loaded), decoding=SHORT)] == alone


def test_an_answer_that_is_there_is_explained_as_its_prompt_is() -> None:
    loaded = make_loaded("llama", initializer_range=0.1)
    first, second = generate_many(loaded, prompts(loaded)[1:3], decoding=SHORT)
    want = explain(loaded, TEXTS[1], decoding=SHORT, settings=Settings(removal=None))
    got = explain(loaded, first, settings=Settings(removal=None))
    assert torch.allclose(got.gradients.values, want.gradients.values, atol=1e-5)
    assert dict(got.generation.request) == dict(want.generation.request)
    with pytest.raises(OptionError, match="each is an answer"):
        explain(loaded, second, response=TEXTS[2])


def test_a_bad_batch_size() -> None:
    with pytest.raises(OptionError, match="batch_size is 0"):
        generate_many(make_loaded("llama"), [], batch_size=0)


def test_many_are_explained_as_one_by_one() -> None:
    loaded = make_loaded("llama", initializer_range=0.1)
    asked = [TEXTS[1], [{"role": "user", "content": TEXTS[0]}], TEXTS[3]]
    stages: list[str] = []
    found = explain_many(
        loaded,
        asked,
        batch_size=2,
        decoding=SHORT,
        settings=gradients_of(max_nodes=32),
        progress=lambda stage, _done, _all: stages.append(stage),
    )
    assert isinstance(found, Iterator)
    assert stages == []  # nothing is computed before it is asked for
    for prompt, got in zip(asked, found, strict=True):
        want = explain(loaded, prompt, decoding=SHORT, settings=gradients_of(max_nodes=32))
        assert got.generation.ids == want.generation.ids
        assert dict(got.generation.request) == dict(want.generation.request)
        assert torch.allclose(got.gradients.values, want.gradients.values, atol=1e-5)
        assert torch.allclose(got.rollout.values, want.rollout.values, atol=1e-6)
        assert [check.status for check in got.checks] == [check.status for check in want.checks]
    assert list(dict.fromkeys(stage for stage in stages if stage.startswith("generating"))) == [
        "generating 1 to 2 of 3",
        "generating 3 to 3 of 3",
    ]
    assert "3 of 3: integrating gradients" in stages


def test_what_is_explained_before_an_error_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    found = explain_many(loaded, TEXTS[:3], batch_size=1, decoding=SHORT, settings=gradients_of(max_nodes=8))
    first = next(found)
    assert first.generation.ids == generate(loaded, prompts(loaded)[0], decoding=SHORT).ids
    monkeypatch.setattr(loaded.model, "forward", None)
    with pytest.raises(TypeError):
        next(found)


def test_a_bad_prompt_among_many_is_refused_before_any_work() -> None:
    with pytest.raises(PromptError, match=r"^Prompt 2: "):
        explain_many(make_loaded("llama"), [TEXTS[0], ""])
    with pytest.raises(OptionError, match="batch_size is 0"):
        explain_many(make_loaded("llama"), [TEXTS[0]], batch_size=0)


@pytest.mark.parametrize("loaded", [make_classifier("bert"), make_encoder_decoder("t5")], ids=["bert", "t5"])
def test_other_kinds_are_explained_too(loaded: LoadedModel) -> None:
    many = list(explain_many(loaded, TEXTS[:2], decoding=SHORT, settings=gradients_of(max_nodes=8)))
    alone = [explain(loaded, text, decoding=SHORT, settings=gradients_of(max_nodes=8)) for text in TEXTS[:2]]
    assert [each.generation for each in many] == [each.generation for each in alone]


def test_many_take_every_option_of_one() -> None:
    one, many = (dict(inspect.signature(f).parameters) for f in (explain, explain_many))
    one.pop("prompt")
    one.pop("found", None)
    for name in ("prompts", "batch_size"):
        many.pop(name)
    for name in ("response", "foil"):  # one for all prompts, or one for each
        assert many.pop(name).annotation == "str | Sequence[str | None] | None"
        assert one.pop(name).annotation == "str | None"
    assert {name: (p.default, p.annotation) for name, p in one.items()} == {
        name: (p.default, p.annotation) for name, p in many.items()
    }
