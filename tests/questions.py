"""Questions whose answer stands in the prompt, among others of its kind, and nowhere else."""

from __future__ import annotations

import random
from dataclasses import dataclass

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kevin", "Laura", "Martin")
CITIES = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Tokyo", "Boston", "Chicago", "Dublin", "Moscow")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "orange")
THINGS = ("book", "lamp", "phone", "ring", "key", "map", "cup", "coat", "ball", "knife")
PLACES = ("kitchen", "garden", "office", "garage", "attic", "library", "bedroom", "cellar", "hall", "car")
JOBS = ("baker", "doctor", "teacher", "driver", "painter", "farmer", "lawyer", "singer")
FAMILIES = ("city", "code", "place", "name")
FACTS = 5


@dataclass(frozen=True)
class Question:
    """Only the sentence `fact` of the prompt gives the value of `subject`."""

    prompt: str
    response: str
    fact: str
    subject: str
    value: str


def make_question(family: str, *, seed: int) -> Question:
    """A question of one family: `city`, `code`, `place` or `name`. The same seed gives the same question."""
    rng = random.Random(f"{family} {seed}")
    subjects, values, fact, ask = {
        "city": (NAMES, CITIES, "{} lives in {}.", "Where does {} live?"),
        "code": (COLOURS, _codes(rng), "The {} box has code {}.", "Which code does the {} box have?"),
        "place": (THINGS, PLACES, "The {} is in the {}.", "Where is the {}?"),
        "name": (JOBS, NAMES, "The {} is called {}.", "What is the {} called?"),
    }[family]
    pairs = list(zip(rng.sample(subjects, FACTS), rng.sample(values, FACTS), strict=True))
    facts = [fact.format(*pair) for pair in pairs]
    chosen = rng.randrange(FACTS)
    subject, value = pairs[chosen]
    return Question(
        prompt=f"{' '.join(facts)} {ask.format(subject)}",
        response=fact.format(subject, value),
        fact=facts[chosen],
        subject=subject,
        value=value,
    )


def _codes(rng: random.Random) -> list[str]:
    """Three digits, no digit twice at the same place, so that each digit of an answer has one source."""
    columns = [rng.sample("0123456789", FACTS) for _ in range(3)]
    return ["".join(digits) for digits in zip(*columns, strict=True)]
