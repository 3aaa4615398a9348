"""Where the text is cut: characters and sentences, as half-open token ranges that cover the sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SENTENCE_ENDS = frozenset(".!?。！？؟।\n")


def characters(tokens: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """One group a token, but tokens that are part of one character together."""
    groups, start = [], 0
    for i, token in enumerate(tokens):
        if token["text"] or i == len(tokens) - 1:
            groups.append((start, i + 1))
            start = i + 1
    return groups


def sentences(tokens: Sequence[Mapping[str, Any]], words: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Words joined up to the sign that ends a sentence, or to the end of the line or of the role."""
    groups: list[tuple[int, int]] = []
    for a, b in words:
        last = tokens[a - 1] if a else None
        ended = last is None or last["role"] != tokens[a]["role"] or last["text"].rstrip(" ")[-1:] in SENTENCE_ENDS
        groups = [*groups, (a, b)] if ended else [*groups[:-1], (groups[-1][0], b)]
    return groups
