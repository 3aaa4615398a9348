"""What is explained, and where in the sequence it is: a target, and the position rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmxai.errors import OptionError
from llmxai.names import Unit
from llmxai.text import by_place, inside


def predicting_position(prompt_len: int, t: int) -> int:
    """The position whose logits predict generated token `t` (0-based), which itself sits at `prompt_len + t`.

    This is the position rule; it is written nowhere else in llmxai.
    """
    return prompt_len + t - 1


def predicted_token(position: int) -> int:
    """The index of the token that the logits at `position` are about: the position rule read backwards."""
    return position + 1


TargetKind = Literal["logprob", "logit", "contrast"]


@dataclass(frozen=True)
class Target:
    """F = sum over (position, id) of the log-prob (nats) or logit of `id`, or of its logit minus the foil's."""

    kind: TargetKind
    positions: tuple[int, ...]
    """Predicting positions: the logits there are about the next token."""
    ids: tuple[int, ...]
    foils: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.positions or len(self.positions) != len(self.ids):
            raise OptionError(
                f"A target has {len(self.positions)} positions and {len(self.ids)} ids; expected one id per position."
            )
        if self.kind == "contrast" and len(self.foils) != len(self.ids):
            raise OptionError(
                f"A contrast of {len(self.ids)} tokens has {len(self.foils)} foils; expected one per token."
            )

    @property
    def last(self) -> int:
        """Its last predicting position; later tokens have no influence."""
        return max(self.positions)

    @property
    def tokens(self) -> Unit:
        """Half-open range of token indices, from the first to the last token that it is about."""
        return predicted_token(min(self.positions)), predicted_token(self.last) + 1


def rows_in(targets: Sequence[Target], prompt_len: int, tokens: Unit) -> list[int]:
    """The targets that make up a range of generated tokens: the one that is it, else the largest ones inside it."""
    return inside(by_place(target.tokens for target in targets), tokens[0] + prompt_len, tokens[1] + prompt_len)
