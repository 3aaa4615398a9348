"""The names that data carries: roles of tokens, statuses of explanations. No torch here: a page is built without it."""

from __future__ import annotations

from enum import StrEnum


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
