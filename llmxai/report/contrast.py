"""A token that is explained against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from llmxai.report.visible import Text, label


@dataclass(frozen=True)
class Contrast:
    """Why this token and not the foil."""

    SENTENCE: ClassVar = (
        "The token ",
        " is explained as a contrast with ",
        ", its foil: positive values speak for the token, negative ones for the foil, in nats of the token’s "
        "log-probability minus the foil’s.",
    )
    """What the page says of it; the token stands after the first part, the foil after the second."""

    token: Text
    foil: Text


def build_contrast(targets: Sequence[Mapping[str, Any]]) -> Contrast | None:
    """Of the one of these tokens that has a foil; None where none has."""
    for target in targets:
        if target["foil"] is not None:
            return Contrast(label(target["text"]), label(target["foil"]["text"]))
    return None
