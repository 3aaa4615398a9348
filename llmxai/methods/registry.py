"""The table of methods.

A method is one function, (loaded, generation, *, targets, **options) -> Scores, entered by the decorator `method`.
Recipes, the command line, the page and `Settings(also=...)` read this table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmxai.errors import OptionError, did_you_mean
from llmxai.types import Scores

FILLED_IN = frozenset({"targets", "progress", "compute", "f_input"})
"""Parameters that a pipeline fills in; the others are the method's options."""


F = TypeVar("F", bound=Callable[..., Scores])


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    needs: frozenset[str]
    """What a model must give: `gradients`, `attentions` or only `forward`."""
    source: str
    summary: str
    function: Callable[..., Scores]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its options with their defaults."""

    def accepts(self, parameter: str) -> bool:
        """Whether the function has this parameter."""
        return parameter in inspect.signature(self.function).parameters


METHODS: dict[str, Method] = {}


def method(name: str, *, needs: set[str], source: str) -> Callable[[F], F]:
    """Enter a function into the table; its docstring's first line is the summary, its keywords are the options."""

    def enter(function: F) -> F:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = {p.name: p.default for p in keywords if p.name not in FILLED_IN}
        METHODS[name] = Method(name, frozenset(needs), source, summary, function, options)
        return function

    return enter


def method_options(name: str) -> dict[str, Any]:
    """The options of a method, with their defaults."""
    return dict(METHODS[name].options)


def require_method(name: str, options: Mapping[str, Any] | None = None, *, where: str = "") -> None:
    """Raise OptionError for a method or an option that does not exist, with the nearest one that does."""
    at = f"{where}: " if where else ""
    if name not in METHODS:
        raise OptionError(
            f"{at}unknown method {name!r}.{did_you_mean(name, METHODS)} Known: {', '.join(sorted(METHODS))}."
        )
    known = METHODS[name].options
    for option in options or {}:
        if option not in known:
            raise OptionError(
                f"{at}method {name!r} has no option {option!r}.{did_you_mean(option, known)} It has: "
                f"{', '.join(known) or 'none'}."
            )
