"""The table of methods.

A method is one function, (loaded, generation, *, targets, **options) -> Scores, registered by the decorator `method`.
Recipes, the command line, the page and `Settings(also=...)` read this table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from llmxai.errors import OptionError, did_you_mean
from llmxai.settings import (
    MOST_SEED,
    AttentionRollout,
    IntegratedGradients,
    Removal,
    Settings,
    require_between,
    require_kind,
    require_least,
)
from llmxai.types import Scores

Limit = Callable[[str, Any], None]
"""Called with the name of an option and its value; raises OptionError if the value is out of range."""
SHARED = {
    each.name: spec for spec in (Removal, AttentionRollout, IntegratedGradients, Settings) for each in fields(spec)
}
"""Checks of the options that are also settings, by name."""
FILLED_IN = frozenset({"targets", "progress", "compute", "f_input"})
"""Parameters that the pipeline fills in; all others are options of the method."""


F = TypeVar("F", bound=Callable[..., Scores])


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    needs: frozenset[str]
    """What it needs from the model: `gradients`, `attentions` or only `forward`."""
    source: str
    summary: str
    function: Callable[..., Scores]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its options with their defaults."""
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """Limits of the options that are not settings, by name."""

    def accepts(self, parameter: str) -> bool:
        """Whether the function has this parameter."""
        return parameter in inspect.signature(self.function).parameters


METHODS: dict[str, Method] = {}


def at_least(least: int | float) -> Limit:
    """Refuse values below `least`."""
    return lambda what, value: require_least(what, value, least)


def between(low: int | float, high: int | float) -> Limit:
    """Refuse values outside the open interval (low, high)."""

    def check(what: str, value: int | float) -> None:
        if not low < value < high:
            raise OptionError(f"{what} is {value}; expected a number between {low} and {high}.")

    return check


def _seed(what: str, value: int) -> None:
    require_between(what, value, 0, MOST_SEED)


def method(name: str, *, needs: set[str], source: str, limits: Mapping[str, Limit] | None = None) -> Callable[[F], F]:
    """Register a function; the first line of its docstring is the summary, its keywords are the options.

    `limits` are checked at every call, and when a recipe is read; those of a seed are the same for all.
    """
    own = limits or {}

    def enter(function: F) -> F:
        limits = {**own, "seed": _seed} if "seed" in inspect.signature(function).parameters else own

        @wraps(function)
        def limited(*given: Any, **options: Any) -> Scores:
            for option in limits.keys() & options.keys():
                limits[option](f"{name}: {option}", options[option])
            return function(*given, **options)

        summary = (function.__doc__ or "").strip().splitlines()[0]
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = {p.name: p.default for p in keywords if p.name not in FILLED_IN}
        entered = cast(F, limited) if limits else function
        METHODS[name] = Method(name, frozenset(needs), source, summary, entered, options, limits)
        return entered

    return enter


def method_options(name: str) -> dict[str, Any]:
    """The options of a method with their defaults."""
    return dict(METHODS[name].options)


def require_method(name: str, options: Mapping[str, Any] | None = None, *, where: str = "") -> dict[str, Any]:
    """The options as the method's function takes them; a mapping in place of a settings object becomes that object.

    Raises OptionError for an unknown method or option (it suggests the nearest one), for a value of the wrong type,
    and for a value out of range.
    """
    at = f"{where}: " if where else ""
    if name not in METHODS:
        raise OptionError(
            f"{at}unknown method {name!r}.{did_you_mean(name, METHODS)} Known: {', '.join(sorted(METHODS))}."
        )
    try:
        return {option: _checked(METHODS[name], option, value) for option, value in (options or {}).items()}
    except OptionError as error:
        raise OptionError(f"{at}{error}") from error


def _checked(entry: Method, option: str, value: Any) -> Any:
    known = entry.options
    if option not in known:
        raise OptionError(
            f"method {entry.name!r} has no option {option!r}.{did_you_mean(option, known)} It has: "
            f"{', '.join(known) or 'none'}."
        )
    default = known[option]
    try:
        if is_dataclass(default) and isinstance(value, Mapping):
            value = cast(Any, type(default))(**value)
        spec = SHARED.get(option)
        if spec is not None and type(default) is type(getattr(spec, option)):
            spec(**{option: value})
        elif default is not None:
            require_kind(option, value, type(default))
        if option in entry.limits:
            entry.limits[option](option, value)
    except OptionError as error:
        raise OptionError(f"method {entry.name!r}: {error}") from error
    return value
