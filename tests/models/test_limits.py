"""Where a model ends: as many tokens as it takes work, one more is refused; ids without an embedding, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import make_classifier, make_encoder_decoder, make_model, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from llmxai.errors import PromptError
from llmxai.generation import answer, encode_ids, encode_prompt, force_response, replay
from llmxai.models import LoadedModel, wrap

N = 40


def made(architecture: str, auto: Any = AutoModelForCausalLM, **sizes: Any) -> LoadedModel:
    tokenizer = make_tokenizer(template=None)
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.for_model(architecture, **ids, **sizes))
    return wrap(model.eval(), tokenizer, name=architecture)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CLASSIFIERS = {
    "bert": (lambda: make_classifier("bert", max_position_embeddings=N), N),
    "roberta": (lambda: make_classifier("roberta", max_position_embeddings=N, pad_token_id=1), N - 2),
    "ibert": (lambda: made("ibert", AutoModelForSequenceClassification, **SMALL, max_position_embeddings=N), N - 2),
    "mpnet": (lambda: made("mpnet", AutoModelForSequenceClassification, **SMALL, max_position_embeddings=N), N - 2),
}
CAUSAL = {
    "gpt2": (lambda: wrap(make_model("gpt2", n_positions=N), make_tokenizer(), name="x"), N),
    "opt": (lambda: wrap(make_model("opt", max_position_embeddings=N), make_tokenizer(), name="x"), N),
    "mpt": (lambda: made("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=N), N),
    "roberta": (lambda: made("roberta", **SMALL, max_position_embeddings=N, is_decoder=True), N - 2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_reads_as_many_tokens_as_it_has_places(name: str) -> None:
    make, limit = CLASSIFIERS[name]
    loaded = make()
    assert loaded.context_length == limit
    generation = answer(loaded, encode_ids(loaded, [20] * limit))
    assert replay(loaded, generation).logprobs == pytest.approx(generation.logprobs, abs=1e-5)
    with pytest.raises(PromptError, match=rf"has {limit + 1} tokens and .* takes {limit}\. Shorten it by 1"):
        encode_ids(loaded, [20] * (limit + 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CAUSAL)
def test_prompt_and_answer_fill_the_places_of_a_causal_model(name: str) -> None:
    make, limit = CAUSAL[name]
    loaded = make()
    assert loaded.context_length == limit
    with torch.no_grad():
        assert loaded.model(input_ids=torch.full((1, limit), 20)).logits.shape[1] == limit
    last = force_response(loaded, encode_ids(loaded, [20] * (limit - 2)), response=" Paris"[:1] + "a")
    assert len(last.ids) <= limit
    assert replay(loaded, last).logprobs
    generated = answer(loaded, encode_ids(loaded, [20] * (limit - 1)))
    assert len(generated.ids) == limit
    with pytest.raises(PromptError, match="takes"):
        encode_ids(loaded, [20] * limit)


@pytest.mark.filterwarnings("ignore")
def test_no_limit_where_the_configuration_says_minus_one() -> None:
    loaded = made("xlnet", AutoModelForSequenceClassification, d_model=32, n_layer=2, n_head=4, d_inner=48)
    assert loaded.context_length is None
    assert replay(loaded, answer(loaded, encode_ids(loaded, [20] * 600))).logprobs


@pytest.mark.filterwarnings("ignore")
def test_the_two_sides_of_led_have_limits_of_their_own() -> None:
    config = AutoConfig.for_model("led", max_encoder_position_embeddings=32, max_decoder_position_embeddings=16)
    loaded = make_encoder_decoder("bart", max_position_embeddings=24)
    assert (loaded.context_length, loaded.answer_length) == (24, 24)
    loaded.model.config.max_encoder_position_embeddings = config.max_encoder_position_embeddings
    loaded.model.config.max_decoder_position_embeddings = config.max_decoder_position_embeddings
    assert (loaded.context_length, loaded.answer_length) == (32, 16)


def test_a_token_without_an_embedding() -> None:
    tokenizer = make_tokenizer()
    model = make_model()
    tokenizer.add_tokens(["<tool_result>"])
    loaded = wrap(model, tokenizer, name="x")
    said = r"Token \d+ \('<tool_result>'\) has no embedding: x has \d+ of them"
    with pytest.raises(PromptError, match=said):
        encode_prompt(loaded, "The capital <tool_result> of France")
    with pytest.raises(PromptError, match=said):
        force_response(loaded, encode_prompt(loaded, "The capital"), response=" <tool_result>")
    with pytest.raises(PromptError, match=said):
        answer(loaded, "The capital", response=" Paris", foil=" <tool_result>")
