"""What was measured for one answer, as an object to work with in Python and in a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from llmxai.names import OUTLETS, Role, Status, Unit
from llmxai.settings import Settings, require_known
from llmxai.text import sentences
from llmxai.types import CrossCheck, Effects, FullPrecision, Generation, Replay, Scores

if TYPE_CHECKING:
    import pandas as pd

GRADIENTS = "layer_integrated_gradients"
ROLLOUT = "attention_rollout"
GROUPINGS = ("token", "word", "sentence")
LONGEST_REPR = 24
"""Tokens of the answer that `repr` shows."""

Grouping = Literal["token", "word", "sentence"]


@dataclass(frozen=True)
class Source:
    """A token, word or sentence and what it contributes."""

    text: str
    value: float
    """Sum of the scores of its tokens: nats for gradients, a share for attention."""
    share: float
    """Its part of the sum of all |values|."""
    role: Role
    tokens: Unit
    """Half-open range of token indices."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenView:
    """One token of the answer, or a run of them, with its sources.

    >>> explanation["Paris"].top(3)
    """

    explanation: Explanation
    tokens: Unit
    """Half-open range of generated tokens (0-based)."""

    def __repr__(self) -> str:
        first = ", ".join(f"{source.text.strip()!r} {source.value:+.2f}" for source in self.top(3))
        return f"{self.text!r:16} {self.status:12} p = {self.probability:<8.2g} {first}"

    @property
    def text(self) -> str:
        generation = self.explanation.generation
        return "".join(
            generation.texts[generation.prompt_len + self.tokens[0] : generation.prompt_len + self.tokens[1]]
        )

    @property
    def checks(self) -> tuple[CrossCheck, ...]:
        """The cross-check of every token in the run."""
        return self.explanation.checks[slice(*self.tokens)]

    @property
    def status(self) -> Status:
        """That of the token that needs the most care."""
        return min((check.status for check in self.checks), key=list(CAREFUL).index)

    @property
    def reason(self) -> str:
        """The sentence behind `status`."""
        return next(check.reason for check in self.checks if check.status == self.status)

    @property
    def logprob(self) -> float:
        """Of the run, given everything before it, in nats."""
        return sum(self.explanation.replay.logprobs[slice(*self.tokens)])

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)

    @property
    def rank(self) -> int:
        """1: each token was the model's first choice."""
        return max(self.explanation.replay.ranks[slice(*self.tokens)])

    def values(self, method: str = GRADIENTS) -> Float[Tensor, " seq"]:
        """One score per token of the sequence: sums over the run for contributions, means for attention."""
        scores = self.explanation.scores_of(method)
        rows = scores.values[slice(*self.tokens)]
        return rows.mean(dim=0) if scores.null is not None else rows.sum(dim=0)

    def sources(self, *, by: Grouping = "word", method: str = GRADIENTS) -> list[Source]:
        """Everything that the token could see, by |value|, largest first."""
        generation, values = self.explanation.generation, self.values(method)
        total = float(values.abs().sum())
        found = []
        for start, end in self.explanation.groups(by):
            value = float(values[start:end].sum())
            if values[start:end].any():
                found.append(
                    Source(
                        text="".join(generation.texts[start:end]),
                        value=value,
                        share=abs(value) / total if total else 0.0,
                        role=generation.roles[end - 1],
                        tokens=(start, end),
                    )
                )
        return sorted(found, key=lambda source: -abs(source.value))

    def top(self, n: int = 3, *, by: Grouping = "word", method: str = GRADIENTS) -> list[Source]:
        """The first `n` sources, by |value|."""
        return self.sources(by=by, method=method)[:n]


CAREFUL = (Status.UNCONVERGED, Status.DISAGREE, Status.DILUTED, Status.UNCHECKED, Status.AGREE)
"""Statuses, the one that needs the most care first."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Everything that was measured for one answer.

    >>> explanation = explain("smollm2", [{"role": "user", "content": "What is the capital of France?"}])
    >>> print(explanation.summary())
    >>> explanation["Paris"].top(3)
    """

    generation: Generation
    replay: Replay
    scores: Mapping[str, Scores]
    """By method: integrated gradients, attention rollout, its variant, then the methods of `settings.also`."""
    effects: Effects | None
    """What removing parts of the prompt does; None where nothing was removed."""
    checks: tuple[CrossCheck, ...]
    """One per generated token."""
    settings: Settings
    """What was asked for."""
    computed: Mapping[str, Any]
    """What the settings came to: held tokens, dtype, chunk sizes, the rule and its thresholds."""
    environment: Mapping[str, Any]
    created: str = ""
    """When, in UTC, ISO 8601."""
    full_precision: FullPrecision | None = None
    """Set by `compare_full` for a quantised model."""

    @property
    def gradients(self) -> Scores:
        return self.scores[GRADIENTS]

    @property
    def rollout(self) -> Scores:
        return self.scores[ROLLOUT]

    @property
    def variant(self) -> Scores:
        return self.scores[self.settings.rollout.variant]

    @property
    def also(self) -> dict[str, Scores]:
        """The scores of the methods that `settings.also` names."""
        core = (GRADIENTS, ROLLOUT, self.settings.rollout.variant)
        return {name: scores for name, scores in self.scores.items() if name not in core}

    @property
    def answer(self) -> str:
        """The text of the answer, without the mark that ends it."""
        generation = self.generation
        end = len(generation.texts) - (generation.stop == "eos")
        return "".join(generation.texts[generation.prompt_len : end])

    def __len__(self) -> int:
        return self.generation.n_targets

    def __iter__(self) -> Iterator[TokenView]:
        return (TokenView(self, (t, t + 1)) for t in range(len(self)))

    def __getitem__(self, key: int | str | slice) -> TokenView:
        """The view of a generated token by its number, of a run by a slice, or of the first word of that text."""
        if isinstance(key, str):
            return TokenView(self, self._word(key))
        start, end, _ = (slice(key, None if key == -1 else key + 1) if isinstance(key, int) else key).indices(len(self))
        if start >= end or (isinstance(key, int) and not -len(self) <= key < len(self)):
            raise IndexError(f"token {key} of an answer of {len(self)} tokens")
        return TokenView(self, (start, end))

    def _word(self, text: str) -> Unit:
        generation, first = self.generation, self.generation.prompt_len
        runs = [word for word in generation.words if word[0] >= first] + [
            (i, i + 1) for i in range(first, first + len(self))
        ]
        for start, end in runs:
            if "".join(generation.texts[start:end]).strip() == text.strip():
                return start - first, end - first
        raise KeyError(f"{text!r} is no word of the answer {self.answer!r}")

    def scores_of(self, method: str) -> Scores:
        """The scores of a method. Raises OptionError for one that was not computed."""
        require_known("method", method, tuple(self.scores))
        return self.scores[method]

    def groups(self, by: Grouping) -> list[Unit]:
        """The sequence as tokens, words or sentences."""
        require_known("by", by, GROUPINGS)
        generation = self.generation
        if by == "token":
            return [(i, i + 1) for i in range(len(generation.ids))]
        if by == "word":
            return list(generation.words)
        return sentences(generation.texts, generation.roles, generation.words)

    def __repr__(self) -> str:
        model = self.environment["model"]["name"]
        lines = [f"Explanation of {self.answer!r}: {len(self)} tokens, {model}"]
        lines += [f"{view.tokens[0]:4} {view!r}" for view in islice(self, LONGEST_REPR)]
        if len(self) > LONGEST_REPR:
            lines.append(f"     ... {len(self) - LONGEST_REPR} more")
        return "\n".join(lines)

    def summary(self) -> str:
        """What was asked and answered, how many tokens have which status, and the first sources of the answer."""
        counts = {status: sum(check.status == status for check in self.checks) for status in CAREFUL}
        statuses = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        asked = "".join(
            text for text, role in zip(self.generation.texts, self.generation.roles, strict=True) if role == Role.USER
        )
        first = [source for source in self[:].sources() if source.role != Role.GENERATED][:5]
        return "\n".join(
            [
                f"asked:    {asked.strip()}",
                f"answered: {self.answer.strip()}",
                f"tokens:   {statuses}",
                f"sources:  {', '.join(f'{s.text.strip()} ({s.share:.0%})' for s in first)}",
            ]
        )

    def to_frame(self, form: Literal["long", "wide"] = "long", *, method: str = GRADIENTS) -> pd.DataFrame:
        """The scores as a table: `long` has one line per method, target and token; `wide` one line per target.

        Raises OptionError for another form, or a method that was not computed.
        """
        import pandas as pd

        require_known("form", form, ("long", "wide"))
        generation = self.generation
        if form == "wide":
            return pd.DataFrame(
                self.scores_of(method).values.numpy(),
                index=pd.Index(generation.texts[generation.prompt_len :], name="target"),
                columns=pd.Index(generation.texts, name="token"),
            )
        rows = [
            {
                "method": name,
                "target": t,
                "target_text": generation.texts[generation.prompt_len + t],
                "token": i,
                "text": generation.texts[i],
                "role": str(generation.roles[i]),
                "value": float(scores.values[t, i]),
            }
            for name, scores in self.scores.items()
            if scores.refused is None
            for t, i in scores.features.nonzero().tolist()
        ]
        return pd.DataFrame(rows, columns=["method", "target", "target_text", "token", "text", "role", "value"])

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain JSON values: what `explanation.json` holds."""
        document: dict[str, Any] = OUTLETS["document"](self)
        return document

    def to_html(self) -> str:
        """The report as one self-contained page."""
        return str(OUTLETS["page"](self))

    def save(self, out: Path | str) -> Path:
        """Write the report, the numbers and the record into a folder; see `llmxai.save`."""
        return Path(OUTLETS["folder"](self, out))

    def _repr_html_(self) -> str:
        return str(OUTLETS["inline"](self))
