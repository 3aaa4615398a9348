"""Names that all parts share: roles of tokens, statuses, types of callbacks. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

Progress = Callable[[int, int], None]
"""Called with (steps done, steps)."""
StageProgress = Callable[[str, int, int], None]
"""Called with (name of the stage, steps done, steps)."""
Unit = tuple[int, int]
"""A half-open range of tokens."""


def quiet(*_progress: object) -> None:
    """Ignore progress."""


class Role(StrEnum):
    """Where a token comes from.

    `bos`: the model's beginning-of-sequence token at position 0. `template`: added by the chat template or the
    tokenizer. `system`, `user`, `tool`: the content of such a message; the text of a raw prompt is `user`. `context`:
    earlier assistant turns and retrieved documents. `generated`: the answer that is explained.
    """

    BOS = "bos"
    TEMPLATE = "template"
    SYSTEM = "system"
    USER = "user"
    TOOL = "tool"
    CONTEXT = "context"
    GENERATED = "generated"


class Status(StrEnum):
    """How the explanation of one generated token may be read (docs/crosscheck.md)."""

    AGREE = "agree"
    DILUTED = "diluted"
    DISAGREE = "disagree"
    UNCONVERGED = "unconverged"
    UNCHECKED = "unchecked"


OUTLETS: dict[str, Callable[..., Any]] = {}
"""What makes a `document`, comparable `content`, a `page`, a notebook's `inline` view or a `folder` of an explanation.
`llmxai` enters them: data does not import what is made of it."""
