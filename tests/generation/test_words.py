"""Texts of tokens join to the decoded text, and words cover the sequence, whatever the text."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from llmxai.generation import token_texts
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
