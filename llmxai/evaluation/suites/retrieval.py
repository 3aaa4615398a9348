"""Suites whose answer stands in the context: needle, key_value, multi_hop, context_memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, cycle, product
from random import Random

from llmxai.evaluation.case import Row, locate
from llmxai.evaluation.suites.registry import CITIES, COLOURS, FILLERS, NAMES, PLACES, THINGS, numbered, suite


def _chat(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def _placed(sentences: list[str], needle: str, depth: float) -> str:
    at = round(depth * len(sentences))
    return " ".join([*sentences[:at], needle, *sentences[at:]])


@suite("needle")
def needle(
    random: Random,
    label: str,
    *,
    lengths: Sequence[int] = (4,),
    depths: Sequence[float] = (0.0, 0.5, 1.0),
    distractors: int = 1,
) -> Iterator[Row]:
    """A fact at a set depth among filler sentences, with distractors of the same form; the source is its value.

    `lengths`: filler sentences; `depths`: 0 (first) to 1 (last); `distractors`: facts about other things.
    """
    for index, (length, depth) in zip(count(), cycle(product(lengths, depths)), strict=False):
        things = random.sample(THINGS, distractors + 1)
        colours = random.sample(COLOURS, distractors + 1)
        facts = [f"The {thing} is {colour}." for thing, colour in zip(things, colours, strict=True)]
        sentences = [random.choice(FILLERS) for _ in range(length)] + facts[1:]
        random.shuffle(sentences)
        text = f"{_placed(sentences, facts[0], depth)} What colour is the {things[0]}? Answer with one word."
        start, end = locate(text, facts[0])
        yield Row(
            id=numbered(label, index),
            source=label,
            messages=_chat(text),
            response=colours[0].capitalize(),
            spans=((end - 1 - len(colours[0]), end - 1),),
            fields={"length": length, "depth": depth, "distractors": distractors, "fact": text[start:end]},
        )


@suite("key_value")
def key_value(random: Random, label: str, *, pairs: Sequence[int] = (3, 6)) -> Iterator[Row]:
    """Codes in a list of keys; the question asks for one, and the source is its code.

    `pairs`: lines of the list.
    """
    for index, size in zip(count(), cycle(pairs), strict=False):
        keys = random.sample(NAMES, size)
        codes = [str(code) for code in random.sample(range(100, 1000), size)]
        asked = random.randrange(size)
        lines = "\n".join(f"{key}: {code}" for key, code in zip(keys, codes, strict=True))
        text = f"Room numbers:\n{lines}\nWhat is the room number of {keys[asked]}? Answer with the number only."
        yield Row(
            id=numbered(label, index),
            source=label,
            messages=_chat(text),
            response=codes[asked],
            spans=(locate(text, codes[asked]),),
            fields={"pairs": size, "line": asked},
        )


@suite("multi_hop")
def multi_hop(random: Random, label: str, *, distractors: int = 1) -> Iterator[Row]:
    """Who has a thing, and where that person is: the answer needs both facts, and both are sources.

    `distractors`: further people, each with a thing and a place.
    """
    for index in count():
        people = random.sample(NAMES, distractors + 1)
        things = random.sample(THINGS, distractors + 1)
        places = random.sample(PLACES, distractors + 1)
        facts = [f"{person} has the {thing}." for person, thing in zip(people, things, strict=True)]
        facts += [f"{person} is in {place}." for person, place in zip(people, places, strict=True)]
        random.shuffle(facts)
        text = f"{' '.join(facts)} Where is the {things[0]}? Answer with the place only."
        holder = locate(text, f"{people[0]} has the {things[0]}")
        place = locate(text, f"{people[0]} is in {places[0]}")
        yield Row(
            id=numbered(label, index),
            source=label,
            messages=_chat(text),
            response=places[0].removeprefix("the ").capitalize(),
            spans=((holder[0], holder[0] + len(people[0])), (place[1] - len(places[0]) + 4, place[1])),
            fields={"distractors": distractors},
        )


@suite("context_memory")
def context_memory(random: Random, label: str) -> Iterator[Row]:
    """The context contradicts what a model has learnt; the answer follows the context, whose word is the source.

    The foil is what is true in the world, so the target is the contrast of the two.
    """
    world = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Germany": "Berlin"}
    world |= {"Norway": "Oslo", "Egypt": "Cairo", "Peru": "Lima", "Ireland": "Dublin", "Austria": "Vienna"}
    for index in count():
        country, city = random.choice(sorted(world.items()))
        other = random.choice([name for name in CITIES if name != city])
        text = (
            f"In this story, the capital of {country} was moved to {other} last year. "
            f"According to the story, what is the capital of {country}? Answer with one word."
        )
        yield Row(
            id=numbered(label, index),
            source=label,
            messages=_chat(text),
            response=other,
            foil=city,
            spans=(locate(text, other),),
            fields={"country": country},
        )
