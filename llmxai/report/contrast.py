"""A token that is explained against another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmxai.report.visible import Text, label


@dataclass(frozen=True)
class Contrast:
    """Why this token and not the foil."""

    token: Text
    foil: Text


def build_contrast(target: Mapping[str, Any]) -> Contrast | None:
    """None for a token without a foil."""
    return target["foil"] and Contrast(label(target["text"]), label(target["foil"]["text"]))
