"""Generated questions with known sources: deterministic in their seed, under this project's licence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from llmxai.errors import RecipeError, did_you_mean
from llmxai.evaluation.case import Row
from llmxai.evaluation.suites import linguistic, retrieval, toy  # noqa: F401  (they enter their suites)
from llmxai.evaluation.suites.registry import SUITES, SuiteEntry, fresh

ROWS = 10
"""Rows of a suite where no limit is given."""

__all__ = ["ROWS", "SUITES", "SuiteEntry", "require_suite", "suite_rows"]


def require_suite(name: str, options: Mapping[str, Any], *, where: str) -> None:
    """Raise RecipeError for a suite or an option that does not exist, with the nearest one that does."""
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
