"""A given answer in the tokens that the model would have said it in."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import tokenizer_of
from tiny import make_classifier, make_loaded, make_model, make_piece_tokenizer, make_tokenizer

from llmxai import IntegratedGradients, Settings, explain, explain_many
from llmxai.errors import OptionError, PromptError
from llmxai.generation import encode_messages, encode_prompt, force_response, with_foil
from llmxai.generation.answer import spellings_after
from llmxai.models import LoadedModel, wrap
from llmxai.types import Generation, Role

QUICK = Settings(gradients=IntegratedGradients(max_nodes=8), removal=None)
SPACES_FIRST = ("byte fallback, strips", "metaspace", "unigram, bytes")
"""Kinds that put a space before the first word of every text."""
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
ASKED = [{"role": "user", "content": "Hello there"}]


@cache
def loaded_with(kind: str) -> LoadedModel:
    tokenizer = tokenizer_of(kind)
    return wrap(make_model("llama", vocab_size=len(tokenizer) + 300), tokenizer, name=kind)


def read(generation: Generation) -> str:
    return "".join(generation.texts[generation.prompt_len :])


def logprob_from_ids(loaded: LoadedModel, generation: Generation) -> float:
    """The sum of log-probs of the answer, from the model's own pass over ids."""
    ids = torch.tensor([generation.ids])
    with torch.no_grad():
        rows = torch.log_softmax(loaded.model(ids).logits[0].double(), dim=-1)
    first = generation.prompt_len
    return float(sum(rows[i - 1, token] for i, token in enumerate(generation.ids) if i >= first))


CUTS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", "Paris"),
    ("The capi", "tal of France"),
    ("The capital of France is ", "Paris"),
    ("The answer was:\n", "Paris"),
    ("The capital of France is", "  Paris\n and Rome"),
]


@pytest.mark.parametrize(("prompt", "response"), CUTS)
@pytest.mark.parametrize("kind", ["byte-level", "byte fallback", *SPACES_FIRST])
def test_prompt_and_response_read_as_asked(kind: str, prompt: str, response: str) -> None:
    loaded = loaded_with(kind)
    tokens = encode_prompt(loaded, prompt)
    generation = force_response(loaded, tokens, response=response)
    assert generation.ids[: generation.prompt_len] == tokens.ids
    if kind != "metaspace" or "\n" not in prompt + response:  # which it cannot write
        before = loaded.tokenizer.decode(tokens.ids)
        assert loaded.tokenizer.decode(generation.ids) == before + response
        assert read(generation) == response
        assert not any("cannot write" in note for note in generation.notes)


@pytest.mark.parametrize("kind", SPACES_FIRST)
def test_where_the_whole_text_begins_with_the_prompt_its_own_tokens_are_taken(kind: str) -> None:
    loaded = loaded_with(kind)
    whole = tuple(loaded.tokenizer("The capital of France is Paris, and")["input_ids"])
    tokens = encode_prompt(loaded, "The capital of France is")
    assert whole[: len(tokens.ids)] == tokens.ids
    generation = force_response(loaded, tokens, response=" Paris, and")
    assert generation.ids == whole
    if kind == "byte fallback, strips":
        alone = loaded.tokenizer(" Paris, and")["input_ids"]
        assert list(generation.generated_ids) != alone, "which reads with two spaces"


@settings(max_examples=60, deadline=None)
@given(
    text=st.text("ab .P日é😀\n", min_size=1, max_size=12),
    cut=st.integers(1, 11),
    kind=st.sampled_from(SPACES_FIRST[:2]),
)
def test_any_text_cut_anywhere(text: str, cut: int, kind: str) -> None:
    """What is after the cut reads as it is written, wherever the tokenizer can write it."""
    tokenizer = tokenizer_of(kind)
    before = tokenizer(text[:cut])["input_ids"]
    rest = text[cut:]
    if not before or not rest:
        return
    found = spellings_after(tokenizer, before, rest)
    for ids in found.exact:
        assert tokenizer.decode([*before, *ids]) == tokenizer.decode(before) + rest
    if kind == "byte fallback, strips":
        assert found.exact


def test_of_several_sequences_the_most_probable_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    tokens = encode_prompt(loaded, "The capital of France is")
    text = " Paris"
    letters = tuple(token for letter in text for token in loaded.tokenizer(letter)["input_ids"])
    natural = tuple(loaded.tokenizer(text)["input_ids"])
    assert letters != natural
    module = import_module("llmxai.generation.answer")  # the package has a function of that name
    one = module.Spellings((natural,), natural)
    scores = {}
    for ids in (natural, letters):
        monkeypatch.setattr(module, "spellings_after", lambda *_, ids=ids: module.Spellings((ids,), ids))
        scores[ids] = logprob_from_ids(loaded, force_response(loaded, tokens, response=text))
    best = max(scores, key=lambda ids: scores[ids])
    for order in ((natural, letters), (letters, natural)):
        monkeypatch.setattr(module, "spellings_after", lambda *_, order=order: module.Spellings(order, natural))
        generation = force_response(loaded, tokens, response=text)
        assert generation.generated_ids == best
        (note,) = generation.notes
        assert "2 sequences of tokens read exactly as the given answer. The most probable" in note
        assert f"{scores[best]:.2f} nats" in note
        assert f"the next one {min(scores.values()):.2f}" in note
    monkeypatch.setattr(module, "spellings_after", lambda *_: one)
    assert force_response(loaded, tokens, response=text).notes == ()


def test_a_tokenizer_that_cannot_write_the_response_says_so() -> None:
    tokenizer = make_piece_tokenizer()
    loaded = wrap(make_model("llama", vocab_size=len(tokenizer)), tokenizer, name="pieces")
    generation = force_response(loaded, encode_prompt(loaded, "the capital is"), response="Paris\n日")
    (note,) = generation.notes
    assert "cannot write the response exactly: its tokens read" in note
    assert read(generation).strip() == "Paris [UNK]"
    explanation = explain(loaded, "the capital is", response="Paris\n日", settings=QUICK)
    assert note in explanation.to_dict()["warnings"]


def test_a_foil_is_written_in_the_answers_place() -> None:
    loaded = loaded_with("byte fallback, strips")
    generation = force_response(loaded, encode_prompt(loaded, "The capital of France is"), response=" Paris")
    foil = with_foil(loaded, generation, foil="Rome").foil
    assert foil is not None
    whole = loaded.tokenizer("The capital of France is Rome")["input_ids"]
    assert foil.id == whole[generation.prompt_len + foil.t]


# reasoning


def roles_read(generation: Generation) -> dict[Role, str]:
    found: dict[Role, str] = {}
    own = slice(generation.prompt_len, None)
    for role, text in zip(generation.roles[own], generation.texts[own], strict=True):
        found[role] = found.get(role, "") + text
    return found


@pytest.fixture(scope="module")
def thinking() -> LoadedModel:
    return wrap(make_model("llama"), make_tokenizer(template=THINKS), name="thinking")


def test_reasoning_that_the_prompt_begins_ends_before_an_answer_without_any(thinking: LoadedModel) -> None:
    tokens = encode_messages(thinking, ASKED)
    generation = force_response(thinking, tokens, response="how are you")
    assert "".join(generation.texts).endswith("<think>\n\n</think>\n\nhow are you")
    assert roles_read(generation) == {Role.GENERATED: "how are you"}
    assert set(generation.roles[len(tokens.ids) : generation.prompt_len]) == {Role.TEMPLATE}
    (note,) = generation.notes
    assert "</think> was put before the answer" in note
    assert any(
        "</think> was put before" in each
        for each in explain(thinking, ASKED, response="you", settings=QUICK).to_dict()["warnings"]
    )


def test_an_answer_that_ends_its_reasoning(thinking: LoadedModel) -> None:
    generation = force_response(
        thinking, encode_messages(thinking, ASKED), response="a greeting\n</think>\n\nhow are you"
    )
    assert roles_read(generation) == {Role.THINKING: "a greeting\n</think>", Role.GENERATED: "\n\nhow are you"}
    assert generation.notes == ()


@pytest.mark.parametrize(
    ("response", "thought"),
    [
        ("<think>a</think>b", "<think>a</think>"),
        ("a</think>b", "a</think>"),
        ("[THINK]a[/THINK]b", "[THINK]a[/THINK]"),
        ("<think>a", "<think>a"),
        ("b", None),
        ("a < b think", None),
    ],
)
def test_reasoning_in_the_answer_to_a_raw_prompt(response: str, thought: str | None) -> None:
    loaded = make_loaded("llama")
    found = roles_read(force_response(loaded, encode_prompt(loaded, "Hello"), response=response))
    said = found.get(Role.THINKING)
    assert (said is None) == (thought is None)
    if thought is not None and said is not None:
        assert said.startswith(thought)


# several, and classes


def test_responses_and_foils_of_several_prompts() -> None:
    loaded = make_loaded("llama")
    prompts = ["The capital of France is", "The capital of Italy is"]
    told = list(explain_many(loaded, prompts, response=[" Paris", " Rome"], foil=[" Rome", None], settings=QUICK))
    assert [one.answer for one in told] == [" Paris", " Rome"]
    assert told[0].generation.foil is not None
    assert told[1].generation.foil is None
    mixed = list(explain_many(loaded, prompts, response=[None, " Rome"], max_new_tokens=2, settings=QUICK))
    assert [one.generation.stop for one in mixed] == ["length", "given"]
    with pytest.raises(OptionError, match="foil is a list of 1 for 2 prompts"):
        explain_many(loaded, prompts, foil=["x"], settings=QUICK)
    same = explain_many(loaded, prompts, response=[" Paris", " Rome"], foil=" Rome", settings=QUICK)
    assert next(same).generation.foil is not None
    with pytest.raises(PromptError, match="Prompt 2: The foil ' Rome' does not differ"):
        next(same)


@pytest.mark.parametrize("call", [lambda m: explain(m, "a", foil=" "), lambda m: explain_many(m, ["a"], foil=["\n"])])
def test_an_empty_foil_is_refused_before_the_model_is_loaded(call: Any) -> None:
    with pytest.raises(PromptError, match="The foil is empty"):
        call("no-such-model-anywhere")


def test_two_classes_of_one_name() -> None:
    loaded = make_classifier("bert", id2label={0: "other", 1: "good", 2: "other"})
    with pytest.raises(PromptError, match=r"no class 'other'\. Known: 'other \(0\)', 'good', 'other \(2\)'"):
        force_response(loaded, encode_prompt(loaded, "Hello there"), response="other")
    generation = force_response(loaded, encode_prompt(loaded, "Hello there"), response="other (2)")
    assert generation.generated_ids == (2,)
    assert force_response(loaded, encode_prompt(loaded, "Hello there"), response="0").generated_ids == (0,)
