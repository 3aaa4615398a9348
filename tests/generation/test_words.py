"""Texts of tokens join to the decoded text, and words cover the sequence, whatever the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from os.path import commonprefix

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kinds import IN_PYTHON, MAKERS, tokenizer_of
from tiny import make_tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llmxai.generation import token_texts
from llmxai.generation.prompt import INCOMPLETE
from llmxai.text import group_words
from llmxai.types import Role


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@example("\ufffd😀")
@example("a\ufffd\ufffd\ufffd日本")
def test_texts_join_to_the_text(text: str) -> None:
    ids = tokenizer()(text)["input_ids"]
    texts = token_texts(tokenizer(), ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(min_value=0, max_value=397), max_size=24))
def test_texts_join_to_the_decoded_ids_also_where_they_are_no_text(ids: list[int]) -> None:
    """A model may emit any bytes; what no character comes from is shown as U+FFFD."""
    assert "".join(token_texts(tokenizer(), ids)) == tokenizer().decode(ids)


def test_a_character_of_several_tokens_stands_with_its_last() -> None:
    ids = tokenizer()("a😀b")["input_ids"]
    assert len(ids) == 6
    assert token_texts(tokenizer(), ids) == ("a", "", "", "", "😀", "b")


def test_long_texts_are_decoded_in_windows() -> None:
    text = "The capital of France is Paris 😀 日本 " * 20
    ids = tokenizer()(text)["input_ids"]
    assert "".join(token_texts(tokenizer(), ids)) == text


# every kind of tokenizer

PIECES = (
    *("a", "b", " ", "  ", "\n", ".", ",", "#", "▁", "The", " capital", " Paris", "don't", "é", "ß", "ї", "߷"),
    *(
        "😀",
        "👩‍👩‍👧",
        "🇫🇷",
        "👍🏽",
        "❤\ufe0f",
        "\u200d",
        "日",
        "本語",
        "。",
        "क्षि",
        "नमस्ते",
        "\u0301",
        "e\u0301",
        "한국",
    ),
)
written = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def naive_texts(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> tuple[str, ...]:
    """What the whole text and the text of the first tokens have in common, for every number of tokens."""
    whole, texts = decoded(tokenizer, ids), []
    for end in range(1, len(ids) + 1):
        alike = commonprefix([decoded(tokenizer, ids[:end]), whole])  # noqa: RUF071
        texts.append(alike[len("".join(texts)) :])
    return tuple(texts)


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None)
@given(text=written)
@example(text="日本語の文章です。" * 12)
@example(text="naïve café " * 9 + "👩‍👩‍👧" * 9)
@example(text="क्षि" * 20 + " e\u0301\u0301")
def test_texts_join_to_the_decoded_text_for_every_kind(kind: str, text: str) -> None:
    """And each token has what it adds to the text of all tokens before it."""
    tokenizer = tokenizer_of(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert INCOMPLETE not in decoded(tokenizer, ids)
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == decoded(tokenizer, ids)
    assert texts == naive_texts(tokenizer, ids)


@pytest.fixture(scope="module")
def in_python(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizer]:
    return {kind: make(tmp_path_factory.mktemp("vocabulary")) for kind, make in IN_PYTHON.items()}


@pytest.mark.parametrize("kind", IN_PYTHON)
@settings(max_examples=60, deadline=None)
@given(text=written, cut=st.integers(0, 60))
@example(text="👩‍👩‍👧 e\u0301 日本語 नमस्ते", cut=60)
def test_texts_join_to_the_decoded_text_for_tokenizers_in_python(
    in_python: dict[str, PreTrainedTokenizer], kind: str, text: str, cut: int
) -> None:
    tokenizer = in_python[kind]
    ids = tokenizer(text)["input_ids"][:cut]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == decoded(tokenizer, ids)


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_ids_of_every_kind(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    if INCOMPLETE not in decoded(tokenizer, ids):
        assert "".join(texts) == decoded(tokenizer, ids)


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None)
@given(text=written, cut=st.integers(0, 200))
def test_an_answer_that_ends_within_a_character(kind: str, text: str, cut: int) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:cut]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    if INCOMPLETE not in decoded(tokenizer, ids) or not kind.endswith(("fallback", "strips", "bytes")):
        assert "".join(texts) == decoded(tokenizer, ids)


def test_a_character_that_is_spelt_in_bytes_stands_with_its_last() -> None:
    tokenizer = tokenizer_of("byte fallback")
    ids = tokenizer("a日b", add_special_tokens=False)["input_ids"]
    assert token_texts(tokenizer, ids) == ("a", "", "", "日", "b")


def streamed(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    stream = DecodeStream(skip_special_tokens=False)
    return "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids)


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None)
@given(text=written)
def test_the_stream_of_tokenizers_gives_the_same_where_every_byte_becomes_text(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert streamed(tokenizer, ids) == "".join(token_texts(tokenizer, ids))


def test_why_that_stream_is_not_used() -> None:
    """docs/findings.md: it drops the end of an answer that was cut, and raises on bytes that are no text."""
    cut = tokenizer()("a😀")["input_ids"][:-1]
    assert streamed(tokenizer(), cut) == "a"
    assert "".join(token_texts(tokenizer(), cut)) == decoded(tokenizer(), cut) == "a�"
    spelt = tokenizer_of("byte fallback")
    ids = spelt.convert_tokens_to_ids(["<0x41>", "<0xF0>", "a"])
    with pytest.raises(Exception, match="Invalid prefix"):
        streamed(spelt, ids)
    assert "".join(token_texts(spelt, ids)) == decoded(spelt, ids) == "��a"


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(0, 20))
def test_words_cover_the_sequence(text: str, cut: int) -> None:
    ids = tokenizer()(text + "!")["input_ids"]
    texts = token_texts(tokenizer(), ids)
    roles = [Role.USER if i < cut else Role.GENERATED for i in range(len(ids))]
    words = group_words(texts, roles)
    assert words[0][0] == 0
    assert words[-1][1] == len(ids)
    assert all(a[1] == b[0] for a, b in pairwise(words))
    assert all(first < end for first, end in words)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["The", " cap", "ital", " of"], [(0, 1), (1, 3), (3, 4)]),
        (["don", "'t", "!"], [(0, 2), (2, 3)]),
        (["日", "本"], [(0, 1), (1, 2)]),
        (["a", "\n", "b"], [(0, 1), (1, 2), (2, 3)]),
        (["", "", "😀", "b"], [(0, 3), (3, 4)]),
        (["12", "34", "."], [(0, 2), (2, 3)]),
    ],
)
def test_words_by_hand(texts: list[str], words: list[tuple[int, int]]) -> None:
    assert list(group_words(texts, [Role.USER] * len(texts))) == words


def test_template_tokens_stand_alone_and_roles_part_words() -> None:
    roles = [Role.TEMPLATE, Role.TEMPLATE, Role.USER, Role.GENERATED]
    assert list(group_words(["a", "b", "c", "d"], roles)) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert list(group_words(["<", ">", "c", ""], roles)) == [(0, 1), (1, 2), (2, 3), (3, 4)]  # cut within a character
