"""Suites for the models that come with them: marker (a trained transformer) and closed_form (a linear model)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from llmxai.evaluation.case import Row
from llmxai.evaluation.suites.registry import numbered, suite

MARKER = "*"
ASK = "?"
WORDS = tuple(f"v{i}" for i in range(16))


def marker_text(random: Random, length: int) -> tuple[str, str, int]:
    """Words with the marker among them, and the question mark; the word after the marker; the marker's place."""
    words = random.choices(WORDS, k=length)
    place = random.randrange(length - 1)
    words[place] = MARKER
    return " ".join([*words, ASK]), words[place + 1], place


@suite("marker")
def marker(random: Random, label: str, *, length: int = 12) -> Iterator[Row]:
    """Random words with a marker, for the model `marker`: the marker and the word after it are the sources.

    `length`: words of the question, 3 to 14, as the model was trained.
    """
    for index in count():
        text, word, place = marker_text(random, length)
        start = text.index(MARKER)
        yield Row(
            id=numbered(label, index),
            source=label,
            prompt=text,
            response=f" {word}",
            spans=((start, start + len(MARKER)), (start + len(MARKER) + 1, start + len(MARKER) + 1 + len(word))),
            fields={"length": length, "place": place},
        )


@suite("closed_form")
def closed_form(random: Random, label: str, *, length: int = 10) -> Iterator[Row]:
    """Random words for the model `closed_form`, whose logits are a sum over tokens: attributions are known exactly.

    The source is the word that raises the answer's logit most against the foil's.
    """
    from llmxai.evaluation.planted_models import build, contributions

    model = build()
    for index in count():
        words = random.choices([f"w{i}" for i in range(40)], k=length)
        answer, foil = random.sample([f"w{i}" for i in range(40)], 2)
        scores = contributions(model, words, answer=answer, foil=foil)
        best = max(range(length), key=lambda i: scores[i])
        start = sum(len(word) + 1 for word in words[:best])
        yield Row(
            id=numbered(label, index),
            source=label,
            prompt=" ".join(words),
            response=f" {answer}",
            foil=f" {foil}",
            spans=((start, start + len(words[best])),),
            fields={"length": length},
        )
