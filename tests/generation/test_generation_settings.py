"""A model's own generation settings: each works, is overridden, or is refused in one paragraph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tiny import make_loaded, prompt_tokens

from llmxai.errors import UnsupportedModelError
from llmxai.generation import Decoding, generate, generate_many, replay
from llmxai.models import LoadedModel

FIVE = Decoding(max_new_tokens=5)

AS_GREEDY: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
    "several answers": {"num_beams": 4, "num_return_sequences": 3},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "contrastive search": {"penalty_alpha": 0.6, "top_k": 4},
    "DoLa": {"dola_layers": "low"},
    "token healing": {"token_healing": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "static cache": {"cache_implementation": "static"},
    "offloaded cache": {"cache_implementation": "offloaded"},
    "quantised cache": {"cache_implementation": "quantized"},
    "prefill in chunks": {"prefill_chunk_size": 2},
    "no cache": {"use_cache": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50},
    "more outputs": {"output_scores": True, "output_attentions": True, "output_hidden_states": True},
}
"""Settings that change how fast the same tokens come, or that `Decoding` overrides."""


def with_settings(**settings: Any) -> LoadedModel:
    loaded = make_loaded()
    for name, value in settings.items():
        setattr(loaded.model.generation_config, name, value)
    return loaded


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", AS_GREEDY)
def test_the_answer_is_the_greedy_one(kind: str) -> None:
    plain, loaded = make_loaded(), with_settings(**AS_GREEDY[kind])
    before = copy.deepcopy(loaded.model.generation_config.to_dict())
    own = loaded.model.generation_config
    answer = generate(loaded, prompt_tokens(loaded), decoding=FIVE)
    assert answer.generated_ids == generate(plain, prompt_tokens(plain), decoding=FIVE).generated_ids
    assert replay(loaded, answer).logprobs == pytest.approx(answer.logprobs, abs=1e-4)
    assert loaded.model.generation_config is own
    assert own.to_dict() == before


@pytest.mark.filterwarnings("ignore")
def test_a_stop_string_ends_the_answer_also_in_a_batch() -> None:
    plain = make_loaded()
    texts = generate(plain, prompt_tokens(plain, "Hello there"), decoding=FIVE).texts[-5:]
    assert texts[2] == "ked"
    loaded = with_settings(stop_strings=["ked"])
    prompts = [prompt_tokens(loaded, "Hello there"), prompt_tokens(loaded, "A person asked which city is the capital")]
    alone = [generate(loaded, prompt, decoding=FIVE) for prompt in prompts]
    together = generate_many(loaded, prompts, decoding=FIVE)
    assert [one.generated_ids for one in together] == [one.generated_ids for one in alone]
    assert alone[0].stop == "string"
    assert "".join(alone[0].texts[alone[0].prompt_len :]) == "".join(texts[:3])
    assert len(alone[0].generated_ids) == 3


@pytest.mark.filterwarnings("ignore")
def test_settings_that_transformers_rejects_are_one_paragraph() -> None:
    loaded = with_settings(watermarking_config={"bias": 2.0, "hashing_key": 5})
    with pytest.raises(UnsupportedModelError, match="cannot generate with its generation settings"):
        generate(loaded, prompt_tokens(loaded), decoding=FIVE)
