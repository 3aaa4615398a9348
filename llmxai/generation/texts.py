from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

WINDOW = 8
"""Tokens of left context that are decoded together with a token (some tokenizers drop a leading space)."""
LONGEST_CHARACTER = 4
"""A character is at most four byte tokens."""


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds, so that the texts joined are the decoded sequence.

    A token that ends in the middle of a character adds `""`; the token that completes it adds the character.
    """

    def decode(first: int, last: int) -> str:
        return str(
            tokenizer.decode(list(ids[first:last]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def settled(first: int, last: int) -> str:
        """What the decoded text of [first, last) has in common with that of some tokens more."""
        pairs = zip(decode(first, last), decode(first, min(last + LONGEST_CHARACTER, len(ids))), strict=False)
        return "".join(now for now, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    texts = []
    for i in range(len(ids)):
        anchor = max(0, i - WINDOW)
        texts.append(settled(anchor, i + 1)[len(settled(anchor, i)) :])
    return tuple(texts)
