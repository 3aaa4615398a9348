"""Public names that are imported when first used: `llmxai --help` and `llmxai report` need no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """`import llmxai.explain` must not put the module in the place of the function of that name."""
        if not (isinstance(value, ModuleType) and name in self.__dict__.get("__all__", ())):
            super().__setattr__(name, value)


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` (PEP 562) for `package`: `homes` says which module holds each public name."""
    module = sys.modules[package]
    module.__class__ = _Package

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return get
