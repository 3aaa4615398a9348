"""The kinds of values in a stored explanation, and what its schema says of the prompt's parts and their pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from llmxai.store.reading import beyond

LARGEST = 1e30
"""Of any number: sums over a text stay finite, in float32 too."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Error = Annotated[float, Field(ge=0, le=LARGEST)]
LogProb = Annotated[float, Field(ge=-LARGEST, le=1e-4)]
"""Rounding may lift it a little above 0."""
Whole = Annotated[int, Field(ge=0, le=2**53)]
Range = Annotated[list[Whole], Field(min_length=2, max_length=2)]
"""Half-open, of tokens."""
Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]
Any_ = TypeVar("Any_")
Word = Annotated[Any_, Field(strict=False)]
"""One of the words of an enumeration."""
Figure = Number | None
Cells = list[list[Figure]]


class Checked(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow", use_enum_values=True)


class PromptPart(Checked):
    """A turn, document or tool, and the tokens that carry its text."""

    kind: str
    source: Whole
    title: str
    text: str
    first: Whole
    last: Whole
    spans: list[Annotated[list[Whole], Field(min_length=3, max_length=3)]]


class ContextPiece(Checked):
    kind: str
    tokens: Range
    part: Annotated[int, Field(ge=-1, le=2**53)]


class OwnMemory(Checked):
    below: Number
    tokens: list[Whole]


class Context(Checked):
    """Documents, turns and their pieces."""

    how: str
    roots: Whole
    f_full: Number
    forwards: Whole
    recomputed: Whole
    f_rest: Figure
    pieces: list[ContextPiece] = Field(min_length=1)
    context: list[Whole]
    rest: list[Whole]
    f_without: list[Number]
    f_deleted: list[Figure]
    f_masked: list[Number]
    divergence: list[list[Number]]
    divergence_all: list[Number]
    effect: list[Number] | None
    low: list[Number] | None
    high: list[Number] | None
    own_memory: OwnMemory


class DocumentRow(Checked):
    title: str
    kind: str
    share: Number
    effect: Number
    interval: Annotated[list[Number], Field(min_length=2, max_length=2)]
    alone: Number
    deleted: bool
    divergence: Number
    tokens: Range
    part: Annotated[int, Field(ge=-1, le=2**53)]


class SpanRow(Checked):
    document: str
    start: Whole
    end: Whole
    text: str
    kind: str
    effect: Number
    tokens: Range


class EffectUnit(Checked):
    kind: str
    tokens: list[Range] = Field(min_length=1)


class EffectCells(Checked):
    confidence: Number
    units: list[EffectUnit]
    effect: Cells
    low: Cells
    high: Cells
    explained: list[Figure]


class Ablations(Checked):
    operator: str
    units: list[Range]
    masks: Whole
    answer_drop: list[Number] | None = None


def faults_of_parts(parts: Sequence[PromptPart], prompt_len: int) -> Iterator[str]:
    for i, part in enumerate(parts):
        if not part.first <= part.last <= prompt_len:
            yield f"parts.{i} is of the tokens {part.first} to {part.last}; expected a range of the prompt's tokens."
        for token, start, end in part.spans:
            if not (part.first <= token < part.last and start < end <= len(part.text)):
                yield f"parts.{i}.spans has [{token}, {start}, {end}]; expected a token and characters of the part."


def faults_of_context(context: Context, *, parts: int, prompt_len: int, tokens: int, documents: int) -> Iterator[str]:
    n, roots = len(context.pieces), context.roots
    yield from beyond("context.pieces", [piece.tokens for piece in context.pieces], prompt_len)
    for i, piece in enumerate(context.pieces):
        if piece.part >= parts:
            yield f"context.pieces.{i}.part is {piece.part}; expected one of the {parts} parts, or -1."
    if not 0 < roots <= n:
        yield f"context.roots is {roots}; expected 1 to {n}, the number of pieces."
    for name, length in (("f_without", n), ("f_deleted", n), ("divergence_all", tokens), ("divergence", tokens)):
        if len(getattr(context, name)) != length:
            yield f"context.{name} is a list of {len(getattr(context, name))}; expected {length}."
    rows = [row for row in (*context.divergence, context.effect, context.low, context.high) if row is not None]
    if any(len(row) != roots for row in rows):
        yield f"context has a list of another length than {roots}; expected one number for each root."
    for name, limit in (("context", roots), ("rest", n)):
        if any(i >= limit for i in getattr(context, name)):
            yield f"context.{name} names a piece beyond {limit}; expected smaller numbers."
    if any(t >= tokens for t in context.own_memory.tokens):
        yield f"context.own_memory names a token beyond {tokens}; expected smaller numbers."
    if documents != roots:
        yield f"documents is a list of {documents}; expected {roots}, the roots of context."
