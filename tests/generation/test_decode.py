"""Generating, taking a given answer, and replaying it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import answered, make_encoder_decoder, make_loaded, prompt_tokens

from llmxai.errors import NonFiniteError, OptionError, ReplayError
from llmxai.generation import Decoding, encode_messages, force_response, generate, replay
from llmxai.models import LoadedModel
from llmxai.types import Role, predicting_position

SAMPLED = Decoding(max_new_tokens=12, temperature=1.5, seed=3)


def raw_logprobs(loaded: LoadedModel, ids: tuple[int, ...], prompt_len: int) -> torch.Tensor:
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids]), use_cache=False).logits[0].double()
    rows = torch.log_softmax(logits, dim=-1)
    return torch.stack([rows[prompt_len + t - 1, token] for t, token in enumerate(ids[prompt_len:])])


@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=12), SAMPLED, replace(SAMPLED, top_p=0.7, top_k=5)])
def test_logprobs_are_those_of_the_raw_logits(tiny_llama: LoadedModel, decoding: Decoding) -> None:
    generation = generate(tiny_llama, prompt_tokens(tiny_llama), decoding=decoding)
    want = raw_logprobs(tiny_llama, generation.ids, generation.prompt_len)
    assert generation.logprobs is not None
    assert (torch.tensor(generation.logprobs, dtype=torch.float64) - want).abs().max() < 1e-4
    assert generation.prompt_len == len(prompt_tokens(tiny_llama).ids)
    assert generation.ids[: generation.prompt_len] == prompt_tokens(tiny_llama).ids
    assert set(generation.roles[generation.prompt_len :]) == {Role.GENERATED}


def test_greedy_takes_the_first_choice(tiny_llama: LoadedModel) -> None:
    generation = generate(tiny_llama, prompt_tokens(tiny_llama), decoding=Decoding(max_new_tokens=12))
    assert set(replay(tiny_llama, generation).ranks) == {1}


def test_sampled_tokens_are_not_all_the_first_choice(tiny_llama: LoadedModel) -> None:
    generation = generate(tiny_llama, prompt_tokens(tiny_llama), decoding=SAMPLED)
    replayed = replay(tiny_llama, generation)
    assert max(replayed.ranks) > 1
    with torch.no_grad():
        logits = tiny_llama.model(torch.tensor([generation.ids])).logits[0]
    for t, (token, rank) in enumerate(zip(generation.generated_ids, replayed.ranks, strict=True)):
        order = logits[predicting_position(generation.prompt_len, t)].argsort(descending=True).tolist()
        assert order.index(token) + 1 == rank


def test_a_seed_gives_the_same_answer_and_another_another(tiny_llama: LoadedModel) -> None:
    answers = [
        generate(tiny_llama, prompt_tokens(tiny_llama), decoding=replace(SAMPLED, seed=seed)).ids for seed in (3, 3, 4)
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_the_callers_random_state_is_left_alone(tiny_llama: LoadedModel) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    generate(tiny_llama, prompt_tokens(tiny_llama), decoding=SAMPLED)
    assert torch.equal(before, torch.get_rng_state())


def test_stop_by_length(tiny_llama: LoadedModel) -> None:
    generation = generate(tiny_llama, prompt_tokens(tiny_llama), decoding=Decoding(max_new_tokens=3))
    assert generation.n_targets == 3
    assert generation.stop == "length"
    assert generation.decoding["max_new_tokens"] == 3


@pytest.mark.parametrize("several", [False, True])
def test_stop_by_eos(several: bool) -> None:
    loaded = make_loaded("llama")
    free = generate(loaded, prompt_tokens(loaded), decoding=Decoding(max_new_tokens=4))
    eos = free.generated_ids[2]
    assert eos not in free.generated_ids[:2]
    loaded.model.generation_config.eos_token_id = [1, eos] if several else eos
    generation = generate(loaded, prompt_tokens(loaded), decoding=Decoding(max_new_tokens=10))
    assert generation.generated_ids == free.generated_ids[:3]
    assert generation.stop == "eos"


def test_every_token_is_counted(tiny_llama: LoadedModel) -> None:
    counted: list[tuple[int, int]] = []
    prompt, count = prompt_tokens(tiny_llama), lambda *numbers: counted.append(numbers)
    generation = generate(tiny_llama, prompt, decoding=Decoding(max_new_tokens=5), progress=count)
    assert counted == [(number, 5) for number in range(1, generation.n_targets + 1)]
    seq2seq = make_encoder_decoder("t5")
    counted.clear()
    generation = generate(seq2seq, prompt_tokens(seq2seq), decoding=Decoding(max_new_tokens=3), progress=count)
    assert counted == [(number, 3) for number in range(1, generation.n_targets + 1)]


def test_room_ends_at_the_context(tiny_llama: LoadedModel) -> None:
    generation = generate(tiny_llama, prompt_tokens(tiny_llama, "!" * 253), decoding=Decoding(max_new_tokens=50))
    assert len(generation.ids) == 256
    assert generation.decoding["max_new_tokens"] == 3


def test_the_models_own_sampling_defaults_do_not_leak() -> None:
    loaded = make_loaded("llama")
    want = generate(loaded, prompt_tokens(loaded), decoding=Decoding(max_new_tokens=6))
    loaded.model.generation_config.update(do_sample=True, temperature=3.0, top_k=2, top_p=0.5, max_length=4)
    got = generate(loaded, prompt_tokens(loaded), decoding=Decoding(max_new_tokens=6))
    assert got.ids == want.ids


def test_a_given_response(tiny_llama: LoadedModel) -> None:
    tokens = encode_messages(tiny_llama, [{"role": "user", "content": "Hello"}])
    generation = force_response(tiny_llama, tokens, response="Paris, Rome")
    assert generation.generated_ids == tuple(tiny_llama.tokenizer("Paris, Rome")["input_ids"])
    assert generation.logprobs is None
    assert generation.stop == "given"
    assert generation.request == {"messages": [{"role": "user", "content": "Hello"}], "response": "Paris, Rome"}
    assert generation.decoding == {}
    replayed = replay(tiny_llama, generation)
    want = raw_logprobs(tiny_llama, generation.ids, generation.prompt_len)
    assert (torch.tensor(replayed.logprobs, dtype=torch.float64) - want).abs().max() < 1e-4
    assert replayed.tolerance is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt2", "bloom", "gpt_oss"])
def test_replay_matches_what_was_recorded(architecture: str, dtype: torch.dtype) -> None:
    if architecture == "gpt_oss" and dtype == torch.float64:
        pytest.skip("its experts' matrix product knows no float64")
    loaded = make_loaded(architecture, dtype=dtype, **({} if architecture != "gemma2" else {"sliding_window": 4}))
    generation = generate(loaded, prompt_tokens(loaded), decoding=replace(SAMPLED, temperature=1.0))
    replayed = replay(loaded, generation)
    assert replayed.tolerance is not None
    assert replayed.tolerance <= {torch.float64: 1e-4, torch.float32: 2e-3, torch.bfloat16: 0.35}[dtype]


def test_another_models_answer_does_not_replay(tiny_llama: LoadedModel) -> None:
    generation = generate(tiny_llama, prompt_tokens(tiny_llama), decoding=Decoding(max_new_tokens=4))
    assert generation.logprobs is not None
    wrong = replace(generation, logprobs=(*generation.logprobs[:2], -7.5, generation.logprobs[3]))
    with pytest.raises(ReplayError, match=r"Generated token 2 .*-7\.5000 when generated.*--dtype float32"):
        replay(tiny_llama, wrong)


def test_nan_weights_are_found_when_generating_and_when_replaying() -> None:
    loaded = make_loaded("llama")
    tokens, generation = prompt_tokens(loaded), answered(loaded)
    with torch.no_grad():
        loaded.model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"token 0 hold NaN or infinity in torch.float32.*--dtype float32"):
        generate(loaded, tokens)
    with pytest.raises(NonFiniteError, match=r"generated token 0 .* is nan"):
        replay(loaded, generation)


def test_float16_that_overflows_is_found() -> None:
    loaded = make_loaded("llama", dtype=torch.float16)
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(3e4)
    with pytest.raises(NonFiniteError, match=r"in torch\.float16.*--dtype float32"):
        generate(loaded, prompt_tokens(loaded))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0; expected 0"),
        ({"temperature": float("nan")}, "temperature is nan; expected 0"),
        ({"temperature": float("inf")}, "temperature is inf; expected 0"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a number above 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
    ],
)
def test_bad_decoding_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        Decoding(**options)
    assert words in str(caught.value)


@pytest.mark.slow
def test_the_real_model_answers_and_replays(smollm2: LoadedModel) -> None:
    tokens = encode_messages(smollm2, [{"role": "user", "content": "What is the capital of France?"}])
    generation = generate(smollm2, tokens, decoding=Decoding(max_new_tokens=16))
    assert "Paris" in "".join(generation.texts[generation.prompt_len :])
    assert generation.stop == "eos"
    assert set(replay(smollm2, generation).ranks) == {1}
