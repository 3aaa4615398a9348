"""Generated questions with known sources, deterministic given their seed, under this project's licence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from llmxai.errors import RecipeError, did_you_mean
from llmxai.evaluation.case import Row

ROWS = 10
"""Rows of a suite without a limit."""


def require_suite(name: str, options: Mapping[str, Any], *, where: str) -> None:
    """Raise RecipeError for an unknown suite or option, suggesting the nearest one."""
    if name not in SUITES:
        raise RecipeError(
            f"{where}: unknown suite {name!r}.{did_you_mean(name, SUITES)} Known: {', '.join(sorted(SUITES))}."
        )
    for option in options:
        if option not in (known := SUITES[name].options):
            raise RecipeError(
                f"{where}: suite {name!r} has no option {option!r}.{did_you_mean(option, known)} It has: "
                f"{', '.join(known) or 'none'}."
            )


def suite_rows(
    name: str, *, label: str | None = None, seed: int = 0, limit: int | None = None, options: Mapping[str, Any] | None
) -> Iterator[Row]:
    """The first `limit` rows of a suite. Raises RecipeError for options out of range."""
    try:
        rows = SUITES[name].function(fresh(seed, name), label or name, **(options or {}))
        yield from islice(rows, limit or ROWS)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"suite {name!r} with {dict(options or {})}: {error}.") from error


Suite = Callable[..., Iterator[Row]]


@dataclass(frozen=True)
class SuiteEntry:
    """One row of the table."""

    name: str
    summary: str
    function: Suite
    """(random, label, **options) -> endless rows."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


SUITES: dict[str, SuiteEntry] = {}


def suite(name: str) -> Callable[[Suite], Suite]:
    """Register a generator; the first line of its docstring is the summary."""

    def enter(function: Suite) -> Suite:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        SUITES[name] = SuiteEntry(name=name, summary=summary, function=function)
        return function

    return enter


def numbered(label: str, index: int) -> str:
    return f"{label}-{index:05d}"


def fresh(seed: int, name: str) -> Random:
    """A separate random state for every suite and seed; text seeds are hashed by SHA-512, the same everywhere."""
    return Random(f"{name}:{seed}")


NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kevin", "Laura", "Martin")
PLACES = ("the garden", "the kitchen", "the library", "the museum", "the office", "the station", "the theatre")
THINGS = ("book", "camera", "guitar", "hammer", "lamp", "letter", "map", "ring", "ticket", "umbrella", "violin")
COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "purple", "red", "white", "yellow")
CITIES = ("Berlin", "Cairo", "Dublin", "Lima", "London", "Madrid", "Oslo", "Paris", "Rome", "Tokyo", "Vienna")
FILLERS = (
    "The weather was mild for the season.",
    "Nobody had closed the window in the hall.",
    "A train passed in the distance.",
    "The meeting took longer than planned.",
    "There was fresh bread on the table.",
    "Two neighbours talked about the road works.",
    "The clock on the wall had stopped again.",
    "Somebody had left a bicycle by the gate.",
    "The new timetable begins on Monday.",
    "It rained a little in the afternoon.",
)
