"""What each token adds to the text, and words out of sub-words. For display only: ids never come from here."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from llmxai.types import Role

JOINING = frozenset("'’-_")
JOINER = "\u200d"
"""Zero-width joiner: what stands on its two sides is one sign."""
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def group_words(texts: Sequence[str], roles: Sequence[Role]) -> tuple[tuple[int, int], ...]:
    """Half-open token ranges that cover the sequence, one a word.

    A word begins at white space, at punctuation, at a change of role, after a line break, and at every character of a
    script written without spaces; template tokens stand alone. A half character stays with what completes it.
    """
    starts = [i for i in range(len(texts)) if i == 0 or _begins_word(texts, roles, i)]
    return tuple(zip(starts, [*starts[1:], len(texts)], strict=True))


def _begins_word(texts: Sequence[str], roles: Sequence[Role], i: int) -> bool:
    before = texts[i - 1]
    text = next((t for t in texts[i:] if t), "")
    if not before or not text:
        return False
    if roles[i] != roles[i - 1] or roles[i] in (Role.TEMPLATE, Role.BOS):
        return True
    last, first = before[-1], text[0]
    if JOINER in (last, first):
        return False
    return last.isspace() or first.isspace() or _class(first) != _class(last) or _class(first) != "letter"


def _class(character: str) -> str:
    category = unicodedata.category(character)
    if character in JOINING or category[0] in "LMN":
        return "unspaced" if unicodedata.name(character, "").startswith(UNSPACED) else "letter"
    return "sign" if category[0] in "PS" else "letter"
