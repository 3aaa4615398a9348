"""An answer against another one: which token is explained against which."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import answered, make_classifier, make_loaded
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmxai.errors import PromptError
from llmxai.generation import Decoding, encode_prompt, force_response, generate, with_foil
from llmxai.methods import Target, token_targets
from llmxai.methods.targets import TargetRows
from llmxai.models import LoadedModel, wrap
from llmxai.types import Foil, Generation

ANSWER = " Paris, and Rome"


@pytest.fixture(scope="module")
def generation(tiny_llama: LoadedModel) -> Generation:
    return answered(tiny_llama, prompt="The capital of France is", response=ANSWER)


def said(generation: Generation) -> tuple[str, ...]:
    return generation.texts[generation.prompt_len :]


def token(loaded: LoadedModel, text: str) -> int:
    (only,) = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(only)


@pytest.mark.parametrize(
    ("foil", "own", "other"),
    [
        (" Rome, and Paris", " Paris", " Rome"),
        ("Rome", " Paris", " Rome"),  # the white space before the answer stands before the foil too
        ("  Rome", " Paris", " Rome"),
        (" Paris, and red", " Rome", " red"),
        (" Paris and", ",", " and"),
    ],
)
def test_the_first_token_that_differs(
    tiny_llama: LoadedModel, generation: Generation, foil: str, own: str, other: str
) -> None:
    found = with_foil(tiny_llama, generation, foil=foil)
    assert found.foil == Foil(t=said(generation).index(own), id=token(tiny_llama, other), text=other)
    assert found.request == {**generation.request, "foil": foil}
    assert found.ids == generation.ids
    assert generation.foil is None


def test_what_a_foil_adds_has_no_counterpart(tiny_llama: LoadedModel, generation: Generation) -> None:
    with pytest.raises(PromptError, match="does not differ from the answer"):
        with_foil(tiny_llama, generation, foil=" Paris, and Rome, and")


def test_the_end_may_be_the_foil_and_half_a_character(tiny_llama: LoadedModel, generation: Generation) -> None:
    ended = with_foil(tiny_llama, generation, foil=" Paris<|im_end|>").foil
    assert ended is not None
    assert (ended.t, ended.text) == (said(generation).index(","), "<|im_end|>")
    half = with_foil(tiny_llama, generation, foil=" Paris€").foil
    assert half is not None
    first = tiny_llama.tokenizer("€", add_special_tokens=False)["input_ids"][0]
    assert (half.id, half.text) == (first, tiny_llama.tokenizer.convert_ids_to_tokens(first))


@pytest.mark.parametrize("foil", ["", " ", "\ud800"])
def test_no_text_is_no_foil(tiny_llama: LoadedModel, generation: Generation, foil: str) -> None:
    with pytest.raises(PromptError):
        with_foil(tiny_llama, generation, foil=foil)


def spaced(*, prefix: str) -> LoadedModel:
    """A tokenizer that puts a space of its own before the text, as SentencePiece does."""
    words = ["<unk>", "▁", "▁The", "▁capital", "▁is", "▁Paris", "▁Rome", "Paris", "Rome"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return wrap(make_loaded("llama").model, fast)


@pytest.mark.parametrize("prefix", ["always", "never"])
@pytest.mark.parametrize("foil", ["Rome", " Rome"])
def test_whatever_the_tokenizer_does_with_the_first_space(prefix: str, foil: str) -> None:
    loaded = spaced(prefix=prefix)
    prompt = encode_prompt(loaded, "The capital is" if prefix == "always" else " The capital is")
    found = with_foil(
        loaded, force_response(loaded, prompt, response=" Paris" if prefix == "never" else "Paris"), foil=foil
    )
    assert found.foil == Foil(t=0, id=6, text=" Rome")
    assert found.generated_ids == (5,)


def test_two_tokens_that_spell_one_word_do_not_differ() -> None:
    """A model may write `Paris` without the space that the tokenizer puts before it."""
    loaded = spaced(prefix="always")
    own = force_response(loaded, encode_prompt(loaded, "The capital is"), response="Paris Rome")
    own = replace(own, ids=(*own.ids[:-2], 7, 6), texts=(*own.texts[:-2], "Paris", " Rome"))
    assert with_foil(loaded, own, foil="Paris is").foil == Foil(t=1, id=4, text=" is")
    with pytest.raises(PromptError, match="does not differ"):
        with_foil(loaded, own, foil="Paris Rome")


def test_a_class_against_another() -> None:
    loaded = make_classifier("bert")
    generation = force_response(loaded, encode_prompt(loaded, "The answer was short."), response="positive")
    assert with_foil(loaded, generation, foil="neutral").foil == Foil(t=0, id=1, text="neutral")
    assert with_foil(loaded, generation, foil="0").foil == Foil(t=0, id=0, text="negative")
    with pytest.raises(PromptError, match="is the class of the answer itself"):
        with_foil(loaded, generation, foil="positive")
    with pytest.raises(PromptError, match="has no class 'blue'"):
        with_foil(loaded, generation, foil="blue")


def test_an_answer_that_was_generated(tiny_llama: LoadedModel) -> None:
    prompt = encode_prompt(tiny_llama, "The capital of France is")
    generation = generate(tiny_llama, prompt, decoding=Decoding(max_new_tokens=3))
    other = " Paris" if not "".join(said(generation)).startswith(" Paris") else " Rome"
    found = with_foil(tiny_llama, generation, foil=other)
    assert found.logprobs == generation.logprobs
    assert found.foil is not None


def test_its_target_is_the_difference_of_the_log_probs(tiny_llama: LoadedModel, generation: Generation) -> None:
    found = with_foil(tiny_llama, generation, foil=" Paris, and red")
    assert found.foil is not None
    t, logits = found.foil.t, torch.randn(1, found.n_targets, len(tiny_llama.tokenizer), dtype=torch.float64)
    targets = token_targets(found)
    assert [target.kind for target in targets] == ["contrast" if i == t else "logprob" for i in range(len(targets))]
    f = TargetRows.of(targets).values(logits)[0]
    logprobs = logits[0].log_softmax(-1)
    for i, own in enumerate(found.generated_ids):
        want = logprobs[i, own] - (logprobs[i, found.foil.id] if i == t else 0)
        assert float(f[i]) == pytest.approx(float(want), abs=1e-12)


def test_a_foil_stands_for_a_token_of_the_answer(generation: Generation) -> None:
    with pytest.raises(ValueError, match="foil is for generated token 99"):
        replace(generation, foil=Foil(t=99, id=0, text="x"))


def test_without_a_foil_no_target_changes(generation: Generation) -> None:
    assert all(isinstance(target, Target) and not target.foils for target in token_targets(generation))
