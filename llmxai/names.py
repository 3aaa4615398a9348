"""The names that all parts share: roles of tokens, statuses, types of callbacks. No torch here: pages do without it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

Progress = Callable[[int, int], None]
"""Called with (steps that are done, steps)."""
StageProgress = Callable[[str, int, int], None]
"""Called with (the stage's name, steps that are done, steps)."""
Unit = tuple[int, int]
"""A half-open range of tokens."""


def quiet(*_progress: object) -> None:
    """Progress that nobody watches."""


class Role(StrEnum):
    """Where a token comes from.

    `bos`: the model's beginning-of-sequence token at position 0. `template`: written by the chat template or
    the tokenizer, not by anyone. `system`, `user`, `tool`: the content of such a message; the text of a raw prompt
    is `user`. `context`: earlier assistant turns and retrieved documents. `generated`: the answer being explained.
    """

    BOS = "bos"
    TEMPLATE = "template"
    SYSTEM = "system"
    USER = "user"
    TOOL = "tool"
    CONTEXT = "context"
    GENERATED = "generated"


class Status(StrEnum):
    """What a reader may do with the explanation of one generated token."""

    AGREE = "agree"
    DILUTED = "diluted"
    DISAGREE = "disagree"
    UNCONVERGED = "unconverged"
    UNCHECKED = "unchecked"


OUTLETS: dict[str, Callable[..., Any]] = {}
"""What makes a `document`, comparable `content`, a `page`, a notebook's `inline` view or a `folder` of an explanation.
`llmxai` enters them: data does not import what is made of it."""
