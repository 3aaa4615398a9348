"""Suites whose answer follows from grammar or repetition: indirect_object, agreement, induction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, cycle
from random import Random

from llmxai.evaluation.case import Row, locate
from llmxai.evaluation.suites.registry import NAMES, THINGS, numbered, suite

SUBJECTS = (("author", "authors"), ("doctor", "doctors"), ("driver", "drivers"), ("farmer", "farmers"))
ATTRACTORS = (("book", "books"), ("car", "cars"), ("garden", "gardens"), ("house", "houses"), ("key", "keys"))
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))


@suite("indirect_object")
def indirect_object(random: Random, label: str) -> Iterator[Row]:
    """Two names, one of them gives: the answer is the other, its first mention the source, the giver the foil.

    The task of Wang et al. 2022 (https://arxiv.org/abs/2211.00593), with our own words.
    """
    for index in count():
        receiver, giver = random.sample(NAMES, 2)
        thing = random.choice(THINGS)
        first, second = random.sample([receiver, giver], 2)
        text = f"After {first} and {second} came home, {giver} gave the {thing} to"
        yield Row(
            id=numbered(label, index),
            source=label,
            prompt=text,
            response=f" {receiver}",
            foil=f" {giver}",
            spans=(locate(text, receiver),),
            fields={"receiver_first": int(first == receiver)},
        )


@suite("agreement")
def agreement(random: Random, label: str, *, attractors: Sequence[int] = (1, 2)) -> Iterator[Row]:
    """Subject and verb agree across attractors of the other number; the source is the subject, the foil the other verb.

    The task of Linzen et al. 2016 (https://arxiv.org/abs/1611.01368), with our own words. `attractors`: nouns between.
    """
    for index, between in zip(count(), cycle(attractors), strict=False):
        plural = random.random() < 0.5
        subject = random.choice(SUBJECTS)[plural]
        nouns = [pair[not plural] for pair in random.sample(ATTRACTORS, between)]
        verb, wrong = (pair := random.choice(VERBS))[plural], pair[not plural]
        text = f"The {subject} near " + " and ".join(f"the {noun}" for noun in nouns)
        yield Row(
            id=numbered(label, index),
            source=label,
            prompt=text,
            response=verb,
            foil=wrong,
            spans=(locate(text, subject),),
            fields={"attractors": between, "plural": int(plural)},
        )


@suite("induction")
def induction(random: Random, label: str, *, length: int = 6) -> Iterator[Row]:
    """Unrelated words, then the first ones again: the next word is known, and where it stood is the source.

    `length`: words before the repetition (Olsson et al. 2022, https://arxiv.org/abs/2209.11895).
    """
    words = (*THINGS, "apple", "bridge", "cloud", "desk", "engine", "forest", "glass", "island", "mirror", "river")
    for index in count():
        chosen = random.sample(words, length)
        known = random.randrange(2, length - 1)
        text = " ".join([*chosen, *chosen[:known]])
        start = len(" ".join(chosen[:known])) + 1
        yield Row(
            id=numbered(label, index),
            source=label,
            prompt=text,
            response=f" {chosen[known]}",
            spans=((start, start + len(chosen[known])),),
            fields={"length": length, "repeated": known},
        )
