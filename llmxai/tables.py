"""The rows, tables (pandas) and lines of text in which an explanation is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmxai.names import Role, Status, Unit
from llmxai.text import quoted
from llmxai.types import Generation, Scores, Target

if TYPE_CHECKING:
    import pandas as pd

LONGEST_LINE = 200
"""Characters of a prompt or an answer that `summary` shows."""
LONG_COLUMNS = {
    **{"method": "str", "target": "int64", "target_text": "str", "status": "str"},
    **{"token": "int64", "text": "str", "role": "str", "value": "float64"},
}
"""Columns of the long table, with their dtypes."""


@dataclass(frozen=True, repr=False)
class Source:
    """A token, word or sentence and its contribution."""

    text: str
    value: float
    """Sum of the scores of its tokens: nats for gradients, a share of 1 for attention."""
    share: float
    """Its share of the sum of |value| over all sources; the shares sum to 1."""
    role: Role
    tokens: Unit
    """Half-open range of token indices."""

    def __repr__(self) -> str:
        return f"Source({quoted(self.text)}, {self.value:+.3g}, {self.share:.0%})"


@dataclass(frozen=True, repr=False)
class Effect:
    """A part of the prompt, and the effect of its removal on a token or a run of the answer."""

    text: str
    drop: float
    """The drop in log-prob (nats) without it; with a foil, in the lead over the foil."""
    probability: float | None
    """Of the token or run, with nothing removed; None with a foil, since the lead was measured."""
    without: float | None
    """The same without this part of the prompt."""
    role: Role
    tokens: Unit
    """Half-open range of token indices."""

    def __repr__(self) -> str:
        change = "" if self.probability is None else f", p {self.probability:.2g} -> {self.without:.2g}"
        return f"Effect({quoted(self.text)}, drop {self.drop:+.3g} nats{change})"


def target_texts(generation: Generation, targets: Sequence[Target]) -> list[str]:
    """The text of every target."""
    return ["".join(generation.texts[slice(*target.tokens)]) for target in targets]


def long_table(
    generation: Generation, targets: Sequence[Target], statuses: Sequence[Status], chosen: Mapping[str, Scores]
) -> pd.DataFrame:
    """One line per method, target and token with a score."""
    import pandas as pd

    texts, roles = np.array(generation.texts, dtype=object), np.array(list(map(str, generation.roles)), dtype=object)
    said = np.array(target_texts(generation, targets), dtype=object)
    status = np.array(list(map(str, statuses)), dtype=object)
    parts = []
    for name, scores in chosen.items():
        target, token = scores.features.numpy().nonzero()
        columns = {"method": name, "target": target, "target_text": said[target], "status": status[target]}
        columns |= {"token": token, "text": texts[token], "role": roles[token]}
        parts.append(pd.DataFrame({**columns, "value": scores.values.double().numpy()[target, token]}))
    return pd.concat(parts, ignore_index=True).astype(LONG_COLUMNS)


def wide_table(generation: Generation, targets: Sequence[Target], scores: Scores) -> pd.DataFrame:
    """One line per target and one column per token, labelled by number and text; NaN where a token has no score."""
    import pandas as pd

    rows = list(enumerate(target_texts(generation, targets)))
    return pd.DataFrame(
        np.where(scores.features.numpy(), scores.values.double().numpy(), np.nan),
        index=pd.MultiIndex.from_tuples(rows, names=["target", "target_text"]),
        columns=pd.MultiIndex.from_tuples(list(enumerate(generation.texts)), names=["token", "text"]),
    )


def asked_line(generation: Generation) -> str:
    """The user's last message, the raw prompt, or the text of token ids."""
    runs: list[tuple[Role, str]] = []
    texts = zip(generation.roles[: generation.prompt_len], generation.texts, strict=False)
    for role, text in texts:
        if runs and runs[-1][0] == role:
            runs[-1] = (role, runs[-1][1] + text)
        else:
            runs.append((role, text))
    said = [(role, text) for role, text in runs if role not in (Role.BOS, Role.TEMPLATE)] or runs
    messages = generation.request.get("messages")
    if messages is None:
        return one_line(" ".join(text for _, text in said))
    last = next((text for role, text in reversed(said) if role == Role.USER), said[-1][1])
    return one_line(last) + (f"  (a chat of {len(messages)} messages)" if len(messages) > 1 else "")


def one_line(text: str) -> str:
    """The text on one line, every character visible, cut to `LONGEST_LINE` characters."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"
