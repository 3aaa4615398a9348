"""The table of methods: one decorated function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    needs: frozenset[str]
    """What a model must give: `gradients`, `attentions` or only `forward`."""
    source: str
    summary: str
    function: Callable[..., Any]


METHODS: dict[str, Method] = {}


def method(name: str, *, needs: set[str], source: str) -> Callable[[F], F]:
    """Enter a function into the table; its docstring's first line is the summary."""

    def enter(function: F) -> F:
        summary = (function.__doc__ or "").strip().splitlines()[0]
        METHODS[name] = Method(name=name, needs=frozenset(needs), source=source, summary=summary, function=function)
        return function

    return enter
