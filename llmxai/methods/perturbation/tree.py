"""The tree of units: turn or document, paragraph, sentence, word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from llmxai.methods.features import CONTENT
from llmxai.names import Role, Unit
from llmxai.text import sentences
from llmxai.types import Generation, Part, Piece

LEVELS = ("paragraph", "sentence", "word")
"""Under documents and turns, from coarse to fine."""


def roots_of(generation: Generation) -> tuple[Piece, ...]:
    """What the user gave as one piece each (documents, turns, tools), in the order of the tokens and without overlap.

    A document's title belongs to it, with the template's tokens between title and text. Content of no part (ids without
    text, names in a turn) forms pieces of its own. What the template leaves out has no tokens and is no piece.
    """
    found: list[Piece] = []
    end = 0
    placed = sorted((part.first, part.last, number) for number, part in enumerate(generation.parts) if part.spans)
    for first, last, number in placed:
        part = generation.parts[number]
        start = max(first, end)
        if part.kind == "document":
            titles = (i for i in range(end, start) if generation.roles[i] == Role.DOCUMENT)
            start = next(titles, start)
        found += _loose(generation, end, start)
        content = [i for i in range(start, last) if generation.roles[i] in CONTENT]
        if content:
            end = content[-1] + 1
            found.append(Piece(part.kind, (content[0], end), number))
    return (*found, *_loose(generation, end, generation.prompt_len))


def _loose(generation: Generation, first: int, last: int) -> list[Piece]:
    """The runs of content tokens of one role in [first, last)."""
    found: list[Piece] = []
    for i in range(first, last):
        if generation.roles[i] not in CONTENT:
            continue
        if found and found[-1].tokens[1] == i and generation.roles[i] == generation.roles[i - 1]:
            found[-1] = replace(found[-1], tokens=(found[-1].tokens[0], i + 1))
        else:
            found.append(Piece(str(generation.roles[i]), (i, i + 1), -1))
    return found


def question_of(generation: Generation, roots: Sequence[Piece]) -> int:
    """The number of the root that asks: the last one, or the one before the beginning of an answer."""
    begun = bool(generation.request.get("continue_final_message")) and len(roots) > 1
    return len(roots) - 1 - int(begun)


def context_of(generation: Generation, roots: Sequence[Piece]) -> tuple[int, ...]:
    """The numbers of the roots that a question may be answered from: documents, else all before the question."""
    documents = tuple(i for i, root in enumerate(roots) if root.kind.removeprefix("run of ").startswith("document"))
    whole = any(root.kind.removeprefix("run of ").removesuffix("s") not in LEVELS for root in roots)
    return documents or (tuple(range(question_of(generation, roots))) if whole else ())


def pieces_of(generation: Generation, piece: Piece) -> tuple[Piece, ...]:
    """The pieces of the next finer level at which there are at least two; none of a single word."""
    if piece.inner:
        return piece.inner
    first, last = piece.tokens
    words = [word for word in generation.words if first <= word[0] and word[1] <= last]
    words = [word for word in words if generation.roles[word[0]] in CONTENT]
    finer = LEVELS[LEVELS.index(piece.kind) + 1 :] if piece.kind in LEVELS else LEVELS
    for level in finer:
        if level == "paragraph":
            units = paragraphs(generation.texts, words)
        elif level == "sentence":
            units = sentences(generation.texts, generation.roles, words)
        else:
            units = _with_blanks(generation.texts, words)
        if len(units) > 1:
            return tuple(Piece(level, unit, piece.part) for unit in units)
    return ()


def sentences_in(generation: Generation, piece: Piece) -> tuple[Piece, ...]:
    """The sentences of a piece, and paragraphs of one sentence; none if it is a single sentence itself."""
    inner = [one for one in pieces_of(generation, piece) if one.kind != "word"]
    return tuple(chain.from_iterable(sentences_in(generation, one) or (one,) for one in inner))


def _with_blanks(texts: Sequence[str], words: Sequence[Unit]) -> list[Unit]:
    """The words; one of white space alone is joined to the word before it, at the beginning to the one after it."""
    found: list[Unit] = []
    blank = False
    for start, end in words:
        joins = bool(found) and found[-1][1] == start and (blank or not "".join(texts[start:end]).strip())
        found[len(found) - joins :] = [(found[-1][0], end) if joins else (start, end)]
        blank = not "".join(texts[slice(*found[-1])]).strip()
    return found


def paragraphs(texts: Sequence[str], words: Sequence[Unit]) -> list[Unit]:
    """Words joined up to an empty line; white space at the beginning belongs to the first paragraph."""
    found: list[Unit] = []
    breaks, blank = 2, True
    for start, end in words:
        text = "".join(texts[start:end])
        inner = text.strip()
        breaks += text[: len(text) - len(text.lstrip())].count("\n") if inner else text.count("\n")
        if found and (breaks < 2 or not inner or blank):
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
        blank = blank and not inner
        if inner:
            breaks = text[len(text.rstrip()) :].count("\n")
    return found


def in_runs(pieces: Sequence[Piece], most: int) -> tuple[Piece, ...]:
    """Neighbouring pieces joined to at most `most` runs, which have them as their own pieces."""
    if len(pieces) <= most:
        return tuple(pieces)
    each = -(-len(pieces) // most)
    groups = [pieces[i : i + each] for i in range(0, len(pieces), each)]
    return tuple(
        Piece(
            f"run of {group[0].kind.removeprefix('run of ').removesuffix('s')}s",
            (group[0].tokens[0], group[-1].tokens[1]),
            group[0].part if len({piece.part for piece in group}) == 1 else -1,
            inner=tuple(group),
        )
        for group in groups
    )


def part_of(generation: Generation, piece: Piece) -> Part | None:
    """The document or turn that a piece belongs to."""
    return generation.parts[piece.part] if piece.part >= 0 else None
