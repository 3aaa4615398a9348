"""Names that all parts share: roles of tokens, statuses, types of callbacks. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

Progress = Callable[[int, int], None]
"""Called with (steps done, steps)."""
StageProgress = Callable[[str, int, int], None]
"""Called with (name of the stage, steps done, steps)."""
Unit = tuple[int, int]
"""A half-open range of tokens."""


SUPPLIED = "The answer was supplied, not generated: the model might never have given it by itself."
"""The warning on such an explanation."""


def quiet(*_progress: object) -> None:
    """Ignore progress."""


class Role(StrEnum):
    """Where a token comes from.

    `bos`: the model's beginning-of-sequence token at position 0. `template`: added by the chat template or the
    tokenizer. `system`, `user`, `tool`: the content of such a message; the text of a raw prompt is `user`, and the
    definition of a tool is `tool`. `context`: earlier assistant turns. `document`: a given document. `thinking`:
    reasoning between think tags, of earlier turns and of the answer. `generated`: the rest of the explained answer.
    """

    BOS = "bos"
    TEMPLATE = "template"
    SYSTEM = "system"
    USER = "user"
    TOOL = "tool"
    CONTEXT = "context"
    DOCUMENT = "document"
    THINKING = "thinking"
    GENERATED = "generated"


class Status(StrEnum):
    """Whether the sources of one generated token can be trusted: the first answer of the verdict.

    `confirmed`: computed accurately, and what the gradients put first matters when it is removed. `contradicted`:
    computed accurately, and removal shows otherwise. `undecided`: no removal matters, or too little could be removed.
    `unconverged`: not computed accurately enough to rank the sources. The others are of rules up to 3, in old records.
    """

    CONFIRMED = "confirmed"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    UNCONVERGED = "unconverged"
    AGREE = "agree"
    DILUTED = "diluted"
    DISAGREE = "disagree"
    UNCHECKED = "unchecked"


CURRENT = (Status.CONFIRMED, Status.CONTRADICTED, Status.UNDECIDED, Status.UNCONVERGED)
"""What rules 4 to 6 give."""


def joint_status(statuses: Sequence[Status]) -> Status:
    """The status of a word over its tokens, or of an answer over its words: that of most of the decided ones.

    The tokens that only spell a word out, once its first one is chosen, depend on no word of the prompt: they decide
    nothing and are not asked. `contradicted` where as many are contradicted as confirmed, `unconverged` where none is
    accurate, `undecided` otherwise.
    """
    confirmed, contradicted = statuses.count(Status.CONFIRMED), statuses.count(Status.CONTRADICTED)
    if confirmed or contradicted:
        return Status.CONFIRMED if confirmed > contradicted else Status.CONTRADICTED
    return Status.UNCONVERGED if statuses and all(s == Status.UNCONVERGED for s in statuses) else Status.UNDECIDED


class AttentionStatus(StrEnum):
    """Whether attention rollout can be read for one generated token: the second answer of the verdict.

    `readable`: it differs from what mask and depth alone give. `diluted`: it does not, which is normal for deep
    decoders. `refused`: the model has layers without softmax attention.
    """

    READABLE = "readable"
    DILUTED = "diluted"
    REFUSED = "refused"


OUTLETS: dict[str, Callable[..., Any]] = {}
"""What makes a `document`, comparable `content`, a `page`, a notebook's `inline` view or a `folder` of an explanation.
`llmxai` enters them: data does not import what is made of it."""
