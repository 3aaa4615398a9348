"""An explanation as an object to work with in Python and in a notebook."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError, did_you_mean
from llmxai.names import OUTLETS, Status, Unit, joint_status
from llmxai.settings import Settings, require_known, require_least
from llmxai.tables import Effect, Source, asked_line, long_table, one_line, wide_table
from llmxai.text import character_units, places, quoted, sentences, trimmed
from llmxai.trace import Trace, TracedSource, falls, unit_shares
from llmxai.types import (
    CrossCheck,
    Effects,
    FullPrecision,
    Generation,
    Replay,
    Scores,
    Target,
    covers,
    rows_in,
    said_words,
)

if TYPE_CHECKING:
    import pandas as pd

GRADIENTS = "layer_integrated_gradients"
ROLLOUT = "attention_rollout"
DELETION = "deletion_path"
GROUPINGS = ("token", "word", "sentence")
FORMS = ("long", "wide")
LONGEST_REPR = 24
"""Tokens of the answer that `repr` shows."""
FIRST_SOURCES = 5
"""Sources that `summary` names."""
CAREFUL = {
    Status.UNCONVERGED: "the contributions are not exact enough to rank the sources",
    Status.CONTRADICTED: "removing words shows other sources than the contributions",
    Status.UNDECIDED: "removal does not settle it",
    Status.CONFIRMED: "what comes first matters when it is removed",
}
"""Statuses in words, those that need the most care first."""


@dataclass(frozen=True, repr=False)
class TokenView:
    """One token of the answer, or a run of them, with its sources.

    >>> explanation["Paris"].top(3)
    """

    explanation: Explanation
    tokens: Unit
    """Half-open range of generated tokens (0-based)."""

    @property
    def rows(self) -> list[int]:
        """The targets that make up the run: the one that is it, else the largest ones inside it."""
        return self.explanation.rows_in(self.tokens)

    def __repr__(self) -> str:
        first = ", ".join(f"{quoted(trimmed(source.text))} {source.value:+.2f}" for source in self.top(3))
        foil = "" if self.foil is None else f"rather than {quoted(self.foil)}  "
        return f"{quoted(self.text):16} {self.status:12} p = {self.probability:<8.2g} {foil}{first}"

    @property
    def text(self) -> str:
        generation = self.explanation.generation
        return "".join(generation.texts[generation.prompt_len :][slice(*self.tokens)])

    @property
    def checks(self) -> tuple[CrossCheck, ...]:
        """The cross-check of every target in the run."""
        return tuple(self.explanation.checks[row] for row in self.rows)

    @property
    def status(self) -> Status:
        """The status of most of its decided targets (`joint_status`)."""
        return joint_status([check.status for check in self.checks])

    @property
    def reason(self) -> str:
        """The sentence behind `status`."""
        return next(check.reason for check in self.checks if check.status == self.status)

    @property
    def logprob(self) -> float:
        """Log-prob of the run, given everything before it, in nats."""
        return sum(self.explanation.replay.logprobs[slice(*self.tokens)])

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)

    @property
    def rank(self) -> int:
        """The highest rank of its tokens; 1 if each was the model's first choice."""
        return max(self.explanation.replay.ranks[slice(*self.tokens)])

    @property
    def foil(self) -> str | None:
        """The foil of the token, or of one token of the run; None if there is none."""
        foil = self.explanation.generation.foil
        return foil.text if foil is not None and foil.t in range(*self.tokens) else None

    def values(self, method: str | None = None) -> Float[Tensor, " seq"]:
        """One score per token of the sequence: sums over the run's targets for contributions, means for attention.

        Raises OptionError for a method that was not computed or is refused.
        """
        scores = self.explanation.scores_of(method)
        rows = scores.values[self.rows]
        return rows.mean(dim=0) if scores.null is not None else rows.sum(dim=0)

    def sources(self, *, by: str = "word", method: str | None = None) -> list[Source]:
        """Every token, word or sentence with a score, by |value|, largest first. Their values sum to the method's.

        Raises OptionError for an unknown `by`, and for a method that was not computed or is refused.
        """
        generation, values = self.explanation.generation, self.values(method)
        sums = {
            (start, end): float(values[start:end].sum())
            for start, end in self.explanation.groups(by)
            if values[start:end].any()
        }
        total = sum(map(abs, sums.values()))
        found = [
            Source(
                text="".join(generation.texts[start:end]),
                value=value,
                share=abs(value) / total if total else 0.0,
                role=generation.roles[end - 1],
                tokens=(start, end),
            )
            for (start, end), value in sums.items()
        ]
        return sorted(found, key=lambda source: -abs(source.value))

    def top(self, n: int = 3, *, by: str = "word", method: str | None = None) -> list[Source]:
        """The first `n` sources, by |value|. Raises what `sources` raises."""
        require_least("n", n, 0)
        return self.sources(by=by, method=method)[:n]

    def effects(self, n: int | None = None) -> list[Effect] | None:
        """The effect of removing each part of the prompt, by |drop|: all parts, or the first `n`.

        None if nothing was removed (`Settings(removal=None)`).
        """
        require_least("n", n or 0, 0)
        effects, generation = self.explanation.effects, self.explanation.generation
        if effects is None:
            return None
        chosen = self.rows
        full = float(effects.f_full[chosen].sum())
        without = effects.f_without[chosen].sum(dim=0).tolist()
        contrast = self.foil is not None
        found = [
            Effect(
                text="".join(generation.texts[start:end]),
                drop=full - left,
                probability=None if contrast else math.exp(full),
                without=None if contrast else math.exp(left),
                role=generation.roles[end - 1],
                tokens=(start, end),
            )
            for (start, end), left in zip(effects.units, without, strict=True)
        ]
        return sorted(found, key=lambda effect: -abs(effect.drop))[:n]

    def traced(self, n: int | None = None) -> list[TracedSource]:
        """The prompt's units by their share after the answer's own words are followed back to the prompt, with the path
        that carries the most: all that have a share, or the first `n`.

        >>> [(explanation.text(s.tokens), s.share, s.direct) for s in explanation["Paris"].traced(3)]

        Raises OptionError for an explanation of an earlier version, which has no trace.
        """
        require_least("n", n or 0, 0)
        return self.explanation.traced_sources(self.rows)[:n]


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Everything measured for one answer.

    >>> explanation = explain("smollm2", [{"role": "user", "content": "What is the capital of France?"}])
    >>> print(explanation.summary())
    >>> explanation["Paris"].top(3)
    """

    generation: Generation
    targets: tuple[Target, ...]
    """What is explained: by default, every token of the answer."""
    replay: Replay
    scores: Mapping[str, Scores]
    """By method: integrated gradients, attention rollout, its variant, then the methods of `settings.also`."""
    effects: Effects | None
    """The effects of removing parts of the prompt; None if nothing was removed."""
    checks: tuple[CrossCheck, ...]
    """One per target."""
    settings: Settings
    """The requested settings."""
    computed: Mapping[str, Any]
    """The settings as computed: held tokens, dtype, chunk sizes, the rule and its thresholds."""
    environment: Mapping[str, Any]
    created: str = ""
    """Time in UTC, ISO 8601."""
    trace: Trace | None = None
    """Every target's shares, followed through the answer to the prompt; None in explanations of earlier versions."""
    full_precision: FullPrecision | None = None
    """Set by `compare_full` for a quantised model."""

    @property
    def gradients(self) -> Scores:
        return self.scores[GRADIENTS]

    @property
    def deletion(self) -> Scores:
        """Deletion-path integrated gradients: what each token's being seen contributes."""
        return self.scores[DELETION]

    @property
    def rollout(self) -> Scores:
        return self.scores[ROLLOUT]

    @property
    def variant(self) -> Scores:
        return self.scores[self.settings.rollout.variant]

    @property
    def also(self) -> dict[str, Scores]:
        """The scores of the methods that `settings.also` names."""
        core = (GRADIENTS, DELETION, ROLLOUT, self.settings.rollout.variant)
        return {name: scores for name, scores in self.scores.items() if name not in core}

    @property
    def answer(self) -> str:
        """The text of the answer, without the end mark."""
        generation = self.generation
        end = len(generation.texts) - (generation.stop == "eos")
        return "".join(generation.texts[generation.prompt_len : end])

    def __eq__(self, other: object) -> bool:
        """Whether both are the same explanation, to the precision of a stored folder (maps in float32)."""
        if not isinstance(other, Explanation):
            return NotImplemented
        if self is other:
            return True
        return self.generation.ids == other.generation.ids and bool(
            OUTLETS["content"](self) == OUTLETS["content"](other)
        )

    def __hash__(self) -> int:
        return hash((self.created, self.generation.ids))

    def answer_words(self) -> list[TokenView]:
        """The words of the answer that say something: neither its end mark nor punctuation alone.

        Where words were no targets, the targets themselves.
        """
        words = said_words(self.generation, self.targets)
        return [TokenView(self, word) for word in words] or list(self)

    def rows_in(self, tokens: Unit) -> list[int]:
        """The targets that make up a range of generated tokens: the one that is it, else the largest ones inside it."""
        return rows_in(self.targets, self.generation.prompt_len, tokens)

    def text(self, tokens: Unit) -> str:
        """The text of a range of token indices."""
        return "".join(self.generation.texts[slice(*tokens)])

    def traced_sources(self, rows: Sequence[int]) -> list[TracedSource]:
        """The traced sources of some targets together; see `TokenView.traced`."""
        if self.trace is None:
            raise OptionError("This explanation is of an earlier version and has no trace. Explain the answer again.")
        direct = self.direct_shares(rows)
        effects = direct.new_full(direct.shape, math.nan)
        if self.effects is not None:
            effects = falls(self.effects, self.trace.units)[list(rows)].sum(dim=0)
        return self.trace.sources(direct, effects)

    def direct_shares(self, rows: Sequence[int]) -> Float[Tensor, " unit"]:
        """The shares of the trace's units in the contributions to some targets together."""
        assert self.trace is not None
        if len(rows) == 1:
            return self.trace.direct[rows[0]]
        sums = self.scores[self.trace.method].values[list(rows)].float().double().sum(dim=0)  # as a folder stores them
        return unit_shares(sums[None], self.trace.units)[0]

    def rows_making(self, unit: Unit) -> list[int]:
        """The targets that make up a range of token indices; none where they do not."""
        tokens = (unit[0] - self.generation.prompt_len, unit[1] - self.generation.prompt_len)
        return self.rows_in(tokens) if covers(self.generation, self.targets, tokens) else []

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[TokenView]:
        return (self._view(row, row) for row in range(len(self)))

    def _view(self, first: int, last: int) -> TokenView:
        ranges, own = [one.tokens for one in self.targets[first : last + 1]], self.generation.prompt_len
        return TokenView(self, (min(a for a, _ in ranges) - own, max(b for _, b in ranges) - own))

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self.find(text))

    def __getitem__(self, key: SupportsIndex | str | slice) -> TokenView:
        """A target by its number, a run of them by a slice, or the first occurrence of a text.

        By default every token of the answer is a target. Raises KeyError for a text that is not in the answer or that
        no targets make up, and IndexError for a number out of range or an empty run.
        """
        if isinstance(key, str):
            if found := self.find(key):
                return found[0]
            raise KeyError(self._absent(key))
        if isinstance(key, slice):
            start, end, step = key.indices(len(self))
            if step != 1:
                raise IndexError(f"Expected a slice with step 1 and got {step}. Choose tokens one by one instead.")
            if start >= end:
                raise IndexError(f"None of the {len(self)} targets is in [{key.start}:{key.stop}].")
            return self._view(start, end - 1)
        if isinstance(key, bool):
            raise TypeError(f"Choose tokens by a number, a slice or a text; {key} is none of them.")
        number = operator.index(key)
        if not -len(self) <= number < len(self):
            raise IndexError(f"There is no target {number}: there are {len(self)}, numbered from 0.")
        return self._view(number % len(self), number % len(self))

    def find(self, text: str) -> list[TokenView]:
        """Every occurrence of `text` in the answer, in order: as whole words or, if there are none, as tokens. Those
        that no targets make up are left out.

        White space around `text` does not count, unless `text` is only white space.
        """
        first = self.generation.prompt_len
        for units in (self._words(), character_units(self.generation.texts, first=first)):
            if found := places(self.generation.texts, units, text):
                views = [TokenView(self, (start - first, end - first)) for start, end in found]
                return [view for view in views if covers(self.generation, self.targets, view.tokens)]
        return []

    def _words(self) -> list[Unit]:
        """The words of the answer."""
        first = self.generation.prompt_len
        return [(max(start, first), end) for start, end in self.generation.words if end > first]

    def _absent(self, text: str) -> str:
        if places(self.generation.texts, self._words(), text):
            return f"{quoted(text, 80)} is in the answer, but no targets make it up: explain with targets=[{text!r}]."
        words = ("".join(self.generation.texts[start:end]).strip() for start, end in self._words())
        known = {word.casefold(): word for word in words if word}
        near = [known[word] for word in difflib.get_close_matches(text.strip().casefold(), known, n=3)]
        hint = f"Near words: {', '.join(map(quoted, near))}." if near else f"The answer is: {one_line(self.answer)}"
        return f"{quoted(text, 80)} is not in the answer. {hint}"

    def scores_of(self, method: str | None = None) -> Scores:
        """The scores of a method: by default the deletion path, or integrated gradients where that is refused.

        Raises OptionError for one that was not computed or is refused for the model.
        """
        if method is None:
            method = GRADIENTS if self.deletion.refused is not None else DELETION
        if method not in self.scores:
            raise OptionError(
                f"method {method!r} was not computed for this answer.{did_you_mean(method, self.scores)} Computed: "
                f"{', '.join(self.scores)}. For more, explain with Settings(also=(...,)); METHODS lists them."
            )
        if (reason := self.scores[method].refused) is not None:
            others = ", ".join(name for name, scores in self.scores.items() if scores.refused is None)
            raise OptionError(f"method {method!r} is refused for this model: {reason} Computed: {others}.")
        return self.scores[method]

    def groups(self, by: str) -> list[Unit]:
        """The sequence as tokens, words or sentences. Raises OptionError for anything else."""
        require_known("by", by, GROUPINGS)
        generation = self.generation
        if by == "token":
            return [(i, i + 1) for i in range(len(generation.ids))]
        if by == "word":
            return list(generation.words)
        return sentences(generation.texts, generation.roles, generation.words)

    def __repr__(self) -> str:
        model = self.environment["model"]["name"]
        lines = [f"Explanation of {quoted(self.answer, 60)} by {model}, {len(self)} token{'s' * (len(self) > 1)}"]
        lines += [f"{view.tokens[0]:4} {view!r}" for view in islice(self, LONGEST_REPR)]
        if len(self) > LONGEST_REPR:
            lines.append(f"     ... {len(self) - LONGEST_REPR} more")
        return "\n".join(lines)

    def summary(self) -> str:
        """Question, answer, number of words by status, and the first sources, one line each.

        The sources are those of the whole answer or, with a foil, of the token that has it.
        """
        statuses = [word.status for word in self.answer_words()]
        counts = {status: statuses.count(status) for status in CAREFUL}
        foil = self.generation.foil
        view = self[:] if foil is None else self[foil.t]
        first = [source for source in view.sources() if source.tokens[0] < self.generation.prompt_len][:FIRST_SOURCES]
        says = CAREFUL if self.effects is not None else CAREFUL | {Status.UNDECIDED: "nothing was removed to check it"}
        lines = {
            "asked": asked_line(self.generation),
            "answered": self._answered(),
            "foil": None if foil is None else f"{quoted(view.text)} rather than {quoted(foil.text)}",
            "status": "; ".join(f"{count} {name} ({says[name]})" for name, count in counts.items() if count),
            "sources": ", ".join(f"{quoted(trimmed(s.text))} {s.value:+.2f} nats ({s.share:.0%})" for s in first),
        }
        if (effects := view.effects(FIRST_SOURCES)) is not None:
            what = "each alone: " + ("log-prob" if foil is None else "lead over the foil")
            losses = ", ".join(f"{-effect.drop:+.2f} nats without {quoted(trimmed(effect.text))}" for effect in effects)
            lines["removal"] = f"{what} {losses}"
        return "\n".join(f"{name + ':':10}{line}" for name, line in lines.items() if line is not None)

    def _answered(self) -> str:
        """The answer, or the class with its probability."""
        classes = self.generation.classes
        if classes:
            return f"{one_line(self.answer)}  (one of {len(classes)} classes, p = {self[0].probability:.2g})"
        return one_line(self.answer) + {"length": "  (cut here)", "given": "  (given)"}.get(self.generation.stop, "")

    def to_frame(self, form: str = "long", *, method: str | None = None) -> pd.DataFrame:
        """The scores as a table.

        `long`: one line per method, target and token with a score, for all methods that are not refused, or for one.
        `wide`: for one method (by default integrated gradients), one line per target and one column per token, labelled
        by number and text; NaN where a token has no score.

        Raises OptionError for an unknown form, and for a method that was not computed or is refused.
        """
        require_known("form", form, FORMS)
        if form == "wide":
            return wide_table(self.generation, self.targets, self.scores_of(method))
        chosen = {name: scores for name, scores in self.scores.items() if scores.refused is None}
        if method is not None:
            chosen = {method: self.scores_of(method)}
        return long_table(self.generation, self.targets, [check.status for check in self.checks], chosen)

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain JSON values: the contents of `explanation.json`."""
        document: dict[str, Any] = OUTLETS["document"](self)
        return document

    def to_html(self) -> str:
        """The report as one self-contained page."""
        return str(OUTLETS["page"](self))

    def save(self, out: Path | str, *, replace: bool = False) -> Path:
        """Write the report, the numbers and the record into a folder; see `llmxai.save`."""
        return Path(OUTLETS["folder"](self, out, replace=replace))

    def _repr_html_(self) -> str:
        return str(OUTLETS["inline"](self))
