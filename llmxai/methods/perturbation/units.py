"""The units that are removed from a prompt: tokens, words, sentences, or longer runs of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from llmxai.methods.features import CONTENT
from llmxai.names import Unit
from llmxai.settings import UNITS, require_known
from llmxai.text import sentences
from llmxai.types import Generation

MOST_UNITS = 64
"""`auto` merges more pieces than this, since each costs a forward pass."""
FEWEST_SENTENCES = 16
"""With fewer sentences than this, `auto` uses runs of words: so few sentences are too coarse."""


def prompt_units(generation: Generation, *, units: str = "auto") -> tuple[tuple[Unit, ...], str]:
    """Half-open token ranges of the prompt's content, and the name of what they are.

    Template tokens, BOS and the answer belong to no unit, and no unit crosses a change of role. A raw prompt that is a
    single unit gives none: nothing would be left to answer from.
    """
    require_known("removal units", units, UNITS)
    tokens = [i for i in range(generation.prompt_len) if generation.roles[i] in CONTENT]
    content = frozenset(tokens)
    words = [word for word in generation.words if word[1] <= generation.prompt_len and word[0] in content]
    if units == "token":
        chosen, kind = [(i, i + 1) for i in tokens], "token"
    elif units == "word":
        chosen, kind = words, "word"
    elif units == "sentence":
        chosen, kind = sentences(generation.texts, generation.roles, words), "sentence"
    else:
        chosen, kind = _not_too_many(generation, words)
    everything = sum(end - start for start, end in chosen) == generation.prompt_len
    return (() if everything and len(chosen) == 1 else tuple(chosen)), kind


def _not_too_many(generation: Generation, words: Sequence[Unit]) -> tuple[list[Unit], str]:
    if len(words) <= MOST_UNITS:
        return list(words), "word"
    found = sentences(generation.texts, generation.roles, words)
    if FEWEST_SENTENCES <= len(found) <= MOST_UNITS:
        return found, "sentence"
    if len(found) > MOST_UNITS:
        return _runs(found, MOST_UNITS), "run of sentences"
    return _runs(words, MOST_UNITS), "run of words"


def _runs(pieces: Sequence[Unit], most: int) -> list[Unit]:
    """Neighbouring pieces merged into about `most` runs with about the same number of pieces."""
    each = -(-len(pieces) // most)
    found: list[Unit] = []
    size = each
    for start, end in pieces:
        if size < each and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
            size += 1
        else:
            found.append((start, end))
            size = 1
    return found


def hidden_sets(generation: Generation) -> tuple[tuple[Unit, ...], ...]:
    """What is hidden from the tokens behind it: each earlier word of the answer, and each word with all its mentions.

    The answer's last word has nothing behind it. Longer answers are cut into sentences, as prompts are. Mentions are
    words with the same letters and digits, whatever their case, in the prompt's content or the answer.
    """
    first = generation.prompt_len
    words = [word for word in generation.words if generation.roles[word[0]] in CONTENT]
    own = [word for word in words if word[0] >= first and word[1] < len(generation.ids)]
    if len(own) > MOST_UNITS:
        own, _ = _not_too_many(generation, own)
    mentions: dict[str, list[Unit]] = {}
    for start, end in words:
        text = "".join(c for c in "".join(generation.texts[start:end]).casefold() if c.isalnum())
        if text:
            mentions.setdefault(text, []).append((start, end))
    repeated = [tuple(places) for places in mentions.values() if len(places) > 1]
    repeated.sort(key=len, reverse=True)
    return (*((word,) for word in own), *repeated[:MOST_UNITS])


def unit_sums(
    values: Float[Tensor, "target seq"], units: tuple[tuple[int, int], ...]
) -> Float[np.ndarray, "target unit"]:
    """The sum of the scores of each unit's tokens."""
    wide = values.double().numpy()
    sums = [wide[:, start:end].sum(axis=1) for start, end in units]
    return np.stack(sums, axis=1) if sums else np.zeros((len(wide), 0))
