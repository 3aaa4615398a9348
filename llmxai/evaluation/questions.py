"""Suites of questions with known sources.

Grammar or repetition: indirect_object, agreement, induction. Retrieval: needle, key_value, multi_hop, context_memory.
Documents and tools: `contexts`. With their own models: marker, trace, closed_form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, cycle, product
from random import Random

from llmxai.evaluation.case import Row, locate
from llmxai.evaluation.suites import CITIES, COLOURS, FILLERS, NAMES, PLACES, THINGS, numbered, suite

SUBJECTS = (("author", "authors"), ("doctor", "doctors"), ("driver", "drivers"), ("farmer", "farmers"))
ATTRACTORS = (("book", "books"), ("car", "cars"), ("garden", "gardens"), ("house", "houses"), ("key", "keys"))
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))


@suite("indirect_object")
def indirect_object(random: Random, label: str) -> Iterator[Row]:
    """Two names, one of them gives: the answer is the other name, its source the first mention, its foil the giver.

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
    """Unrelated words, then the first ones again: the next word is the answer, its first occurrence the source.

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
    """A fact at a given depth among filler sentences, with distractors of the same form; the source is its value.

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
    """A list of keys with codes; the question asks for one code, which is the source.

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
    """Who has a thing, and where that person is: the answer needs both facts, so both are sources.

    `distractors`: additional people, each with a thing and a place.
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
def context_memory(random: Random, label: str, *, document: bool = False) -> Iterator[Row]:
    """The context contradicts the model's knowledge; the answer follows the context, whose word is the source.

    The foil is the true fact, so the target is the contrast of the two. `document`: the story is a document of its own,
    so that explanations say whether it mattered at all (`context.divergence_all`).
    """
    world = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Germany": "Berlin"}
    world |= {"Norway": "Oslo", "Egypt": "Cairo", "Peru": "Lima", "Ireland": "Dublin", "Austria": "Vienna"}
    for index in count():
        country, city = random.choice(sorted(world.items()))
        other = random.choice([name for name in CITIES if name != city])
        story = f"In this story, the capital of {country} was moved to {other} last year."
        question = f"According to the story, what is the capital of {country}? Answer with one word."
        text = question if document else f"{story} {question}"
        yield Row(
            id=numbered(label, index),
            source=label,
            messages=_chat(text),
            response=other,
            foil=city,
            spans=() if document else (locate(text, other),),
            fields={"country": country},
            documents=({"title": "Story", "text": story},) if document else (),
            document_spans=((0, *locate(story, other)),) if document else (),
        )


MARKER = "*"
ASK = "?"
WORDS = tuple(f"v{i}" for i in range(16))


def marker_text(random: Random, length: int) -> tuple[str, str, int]:
    """Words with the marker among them and a question mark; the word after the marker; the marker's position."""
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


TASKS = ("copy", "chain2", "chain3", "sum", "think")
DIGITS = tuple("0123456789")
SECOND = "+"
"""Marks the second number of a sum; the first has `MARKER`."""
FIRST_SAID, SECOND_SAID, SAME, NEXT, ADDED, OPEN, CLOSE = ":", "&", ";", ">", "=", "(", ")"
"""Signs in an answer. After the first two comes the prompt's marked word, or its second one. The word after the others
follows from the words before it alone: the same again, the next one, the sum of the last two; what is in brackets is a
thought, whose last word is then given again."""
SIGNS = (FIRST_SAID, SECOND_SAID, SAME, NEXT, ADDED, OPEN, CLOSE)
MARKED = tuple(f"{MARKER}{word}" for word in (*WORDS, *DIGITS)) + tuple(f"{SECOND}{digit}" for digit in DIGITS)
"""Words of a question that its answer repeats without the mark; each is one token."""


def following(word: str) -> str:
    """The word that the model `tracer` knows to follow another one: a fixed permutation without fixed points."""
    return WORDS[(5 * WORDS.index(word) + 3) % len(WORDS)]


def trace_text(
    random: Random, task: str, length: int, *, others: int = 3
) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    """A question of `length` words for the model `tracer`, its marked words, and their positions after the task.

    A sum has two marked digits, the other tasks one marked word. The words without a mark are drawn from those of the
    answer and `others` different ones. Nothing but the task is in every question: the model would gather the question
    there, and that word would take the credit.
    """
    marks, kind = ((MARKER, SECOND), DIGITS) if task == "sum" else ((MARKER,), WORDS)
    found = tuple(f"{mark}{random.choice(kind)}" for mark in marks)
    said = sorted({word for word in trace_answer(task, found)[0] if word in kind})
    words = random.choices((*said, *random.sample(kind, min(others, len(kind)))), k=length)
    places = random.sample(range(length), len(marks))
    for word, place in zip(found, places, strict=True):
        words[place] = word
    return " ".join([task, *words]), found, tuple(place + 1 for place in places)


def trace_answer(task: str, sources: Sequence[str]) -> tuple[list[str], list[bool]]:
    """The words of the answer to a question with these marked words, and which of them follow from the answer's earlier
    words alone.

    copy: the word, and the word again. chain2, chain3: the word and one or two others, each following the one before.
    sum: both numbers, their sum, and the sum of this and the second number, modulo 10. think: a thought in brackets,
    which ends with the answer that is then given.
    """
    said = [source[1:] for source in sources]
    if task == "sum":
        a, b = map(int, said)
        text = f"{FIRST_SAID} {a} {SECOND_SAID} {b} {ADDED} {(a + b) % 10} {ADDED} {(a + 2 * b) % 10}"
    else:
        one, two = said[0], following(said[0])
        text = {
            "copy": f"{FIRST_SAID} {one} {SAME} {one}",
            "chain2": f"{FIRST_SAID} {one} {NEXT} {two}",
            "chain3": f"{FIRST_SAID} {one} {NEXT} {two} {NEXT} {following(two)}",
            "think": f"{OPEN} {FIRST_SAID} {one} {NEXT} {two} {CLOSE} {two}",
        }[task]
    answer = text.split(" ")
    return answer, [before in (SAME, NEXT, ADDED, CLOSE) for before in ["", *answer[:-1]]]


@suite("trace")
def trace(
    random: Random, label: str, *, tasks: Sequence[str] = TASKS, length: int = 20, others: int = 3
) -> Iterator[Row]:
    """Answers in steps, for the model `tracer`: the sources of the last word are the question's marked words.

    It follows from the answer's earlier words alone, so only a method that traces through them finds these sources.
    `tasks`: copy, chain2, chain3, sum, think; `length`: words of the question, 3 to 24, as the model was trained;
    `others`: different words in it, besides those of the answer (3 in training).
    """
    for index, task in zip(count(), cycle(tasks), strict=False):
        text, sources, places = trace_text(random, task, length, others=others)
        words, _ = trace_answer(task, sources)
        pieces = text.split(" ")
        starts = [len(" ".join(pieces[:place])) + 1 for place in places]
        yield Row(
            id=numbered(label, index),
            source=label,
            prompt=text,
            response=f" {' '.join(words)}",
            target=f"{len(words) - 1}:",
            spans=tuple((start, start + len(word)) for start, word in zip(starts, sources, strict=True)),
            fields={"task": task, "length": length},
        )


@suite("closed_form")
def closed_form(random: Random, label: str, *, length: int = 10) -> Iterator[Row]:
    """Random words for the model `closed_form`, whose logits are a sum over tokens: attributions are known exactly.

    The source is the word that raises the answer's logit most, compared with the foil's.
    """
    from llmxai.evaluation.planted_models import build, contributions

    model = build()
    for index in count():
        words = random.sample([f"w{i}" for i in range(40)], k=length)  # each once: two equal words would both be it
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
