"""What is explained: a scalar F of the logits at one or several positions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.models.embedding import on_device
from llmxai.names import Unit
from llmxai.text import character_units, places, quoted, sentences, trimmed
from llmxai.types import Generation, TargetKind, predicting_position
from llmxai.types import Target as Target

TOKEN, WORD, SENTENCE, ANSWER = "token", "word", "sentence", "answer"
RANGE = re.compile(r"(-?\d*):(-?\d*)")
NEAR = 0.6
"""Similarity (0 to 1) from which a passage is offered in place of a text that does not occur."""


def token_targets(generation: Generation, *, kind: TargetKind = "logprob") -> tuple[Target, ...]:
    """One target per token of the answer; the token that has a foil gets the contrast with it.

    The end mark is none, unless it has the foil: then the question is why the answer ends there.
    """
    foil = generation.foil
    chosen = sorted({*generation.answer_tokens, *(() if foil is None else (foil.t,))})
    return tuple(_token_target(generation, t, kind=kind) for t in chosen)


def _token_target(generation: Generation, t: int, *, kind: TargetKind = "logprob") -> Target:
    if (foil := generation.foil_of(t)) is not None:
        return contrast_target(generation, t=t, foil=foil.id)
    position = predicting_position(generation.prompt_len, t)
    return Target(kind=kind, positions=(position,), ids=(generation.generated_ids[t],))


def chosen_targets(generation: Generation, asked: str | Target | Sequence[str | Target] | None) -> tuple[Target, ...]:
    """The targets that `asked` names, in order, each once.

    `token` (the default): every token of the answer. `word`, `sentence`: every one of them. `answer`: all of it. `i:j`:
    the generated tokens from i up to, but not including, j. Anything else is a text of the answer, and each place where
    it occurs is a target; in double quotes, `"answer"` and `"1:2"` are such texts too. A target of several tokens is
    their joint log-prob. End marks are a part of a target only if a range or a text names them.

    Raises OptionError for a text that does not occur (it says where it nearly does), an empty range, ranges that
    overlap without one holding the other, and targets that leave out the token of a foil.
    """
    named = [asked] if isinstance(asked, str | Target) else [TOKEN] if asked is None else list(asked)
    if not named:
        raise OptionError(f"targets is empty; expected token, word, sentence, answer, i:j or a text. Default: {TOKEN}.")
    found: dict[Target, None] = {}
    for one in named:
        found |= dict.fromkeys([one] if isinstance(one, Target) else _named(generation, one))
    chosen = tuple(found)
    _require_nested(generation, chosen)
    if (foil := generation.foil) is not None and all(target.kind != "contrast" for target in chosen):
        raise OptionError(
            f"The foil explains why token {foil.t} of the answer was chosen over {quoted(foil.text)}, and no target is "
            f"that token. Add {foil.t}:{foil.t + 1} to the targets, or leave them out."
        )
    return chosen


def _named(generation: Generation, name: str) -> Iterator[Target]:
    """The targets behind one name."""
    if name == TOKEN:
        yield from token_targets(generation)
    elif name == ANSWER:
        yield span_target(generation)
    elif name in (WORD, SENTENCE):
        words = answer_words(generation)
        units = words if name == WORD else sentences(generation.texts, generation.roles, words)
        yield from (_span(generation, unit) for unit in units)
    elif (bounds := RANGE.fullmatch(name)) is not None:
        yield _span(generation, _range(generation, name, *bounds.groups()))
    else:
        text = name[1:-1] if len(name) > 2 and name[0] == name[-1] == '"' else name
        yield from (_span(generation, unit) for unit in _occurrences(generation, text))


def answer_words(generation: Generation) -> list[Unit]:
    """The words of the answer as half-open token ranges, without the end mark."""
    own = {generation.prompt_len + t for t in generation.answer_tokens}
    return [word for word in generation.words if own.issuperset(range(*word))]


def _span(generation: Generation, unit: Unit) -> Target:
    start, end = (place - generation.prompt_len for place in unit)
    return _token_target(generation, start) if end == start + 1 else span_target(generation, first=start, end=end)


def _range(generation: Generation, name: str, first: str, end: str) -> Unit:
    n, start = generation.n_targets, generation.prompt_len
    numbers = [int(bound) if bound.strip("-") else None for bound in (first, end)]
    low, high, _ = slice(*numbers).indices(n)
    beyond = any(bound is not None and not -n <= bound <= n for bound in numbers)
    if beyond or low >= high:
        holds = "reaches beyond the answer" if beyond else "holds no token"
        raise OptionError(
            f"The target {name} {holds}, which has {n} generated tokens, numbered from 0. Give a range such as 0:{n}; "
            f"for the text {quoted(name)} of the answer, put it in double quotes."
        )
    return start + low, start + high


def _occurrences(generation: Generation, text: str) -> list[Unit]:
    first, texts = generation.prompt_len, generation.texts
    words = [(max(start, first), end) for start, end in generation.words if end > first]
    for units in (words, character_units(texts, first=first)):
        if trimmed(text) and (found := places(texts, units, text)):
            return found
    near = _nearest(generation, words, text.strip())
    raise OptionError(
        f"The target {quoted(text)} does not occur in the answer.{near} Targets are token, word, sentence, answer, a "
        f"range i:j of generated tokens, or a text of the answer: {quoted(''.join(texts[first:]), 200)}"
    )


def _nearest(generation: Generation, words: Sequence[Unit], text: str) -> str:
    """A sentence, with a leading space, on the passage that reads most like `text`; empty if none comes near.

    If none does, on the longest word that both have.
    """
    wanted, best, place = text.casefold(), NEAR, None
    n = max(1, len(text.split()))
    for number in range(len(words)):
        for size in range(1, 2 * n + 1):  # punctuation is a word of its own
            start, end = words[number][0], words[min(number + size, len(words)) - 1][1]
            said = "".join(generation.texts[start:end]).strip().casefold()
            likeness = SequenceMatcher(None, wanted, said, autojunk=False).ratio()
            if likeness > best:
                best, place = likeness, (start, end)
    if place is None:
        asked = {_bare(word) for word in wanted.split()} - {""}
        shared = {unit: said for unit in words if (said := _bare("".join(generation.texts[slice(*unit)]))) in asked}
        place = max(shared, key=lambda unit: len(shared[unit]), default=None)
    if place is None:
        return ""
    start, end = place
    said = "".join(generation.texts[start:end]).strip()
    first = generation.prompt_len
    return f" Nearest is {quoted(said, 80)}, generated tokens {start - first}:{end - first}."


def _bare(word: str) -> str:
    """A word in lower case, without what surrounds its letters and digits."""
    return re.sub(r"^\W+|\W+$", "", word.casefold())


def _require_nested(generation: Generation, targets: Sequence[Target]) -> None:
    first = generation.prompt_len
    for one, other in combinations(sorted({target.tokens for target in targets}), 2):
        if other[0] < one[1] < other[1] and one[0] < other[0]:
            a, b = (f"{start - first}:{end - first}" for start, end in (one, other))
            raise OptionError(
                f"The targets {a} and {b} overlap, so neither can be distinguished from the other. Give ranges of "
                f"generated tokens that do not overlap, or one that holds the other."
            )


def targets_of(generation: Generation, targets: Sequence[Target] | None) -> tuple[Target, ...]:
    """`targets`, or one for every token of the answer if None."""
    return token_targets(generation) if targets is None else tuple(targets)


def seen_by(targets: Sequence[Target], n: int) -> Bool[Tensor, "target seq"]:
    """Which of `n` tokens each target sees: all up to its last predicting position."""
    return torch.arange(n) <= torch.tensor([target.last for target in targets])[:, None]


def kinds(targets: Sequence[Target]) -> str:
    """The kinds of the targets, for the settings of a method: `logprob`, or `logprob, contrast`."""
    return ", ".join(dict.fromkeys(target.kind for target in targets))


def span_target(generation: Generation, *, first: int = 0, end: int | None = None) -> Target:
    """Joint log-prob of the generated tokens [first, end); by default of the whole answer, without its end mark."""
    chosen: Sequence[int] = range(*slice(first, end).indices(generation.n_targets))
    if (first, end) == (0, None):
        chosen = generation.answer_tokens
    return Target(
        kind="logprob",
        positions=tuple(predicting_position(generation.prompt_len, t) for t in chosen),
        ids=tuple(generation.generated_ids[t] for t in chosen),
    )


def contrast_target(generation: Generation, *, t: int, foil: int) -> Target:
    """Logit of generated token `t` minus the logit of `foil` (equal to the difference of their log-probs)."""
    position = predicting_position(generation.prompt_len, t)
    return Target(kind="contrast", positions=(position,), ids=(generation.generated_ids[t],), foils=(foil,))


@dataclass(frozen=True)
class TargetRows:
    """All targets flattened to rows of logits: row r belongs to target `owner[r]`."""

    targets: tuple[Target, ...]
    positions: tuple[int, ...]
    owner: tuple[int, ...]

    @classmethod
    def of(cls, targets: Sequence[Target]) -> TargetRows:
        pairs = [(p, i) for i, target in enumerate(targets) for p in target.positions]
        return cls(targets=tuple(targets), positions=tuple(p for p, _ in pairs), owner=tuple(i for _, i in pairs))

    def values(self, logits: Float[Tensor, "node row vocab"]) -> Float[Tensor, "node target"]:
        """F of every target, in float32 or wider."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        device = logits.device
        ids = on_device([i for target in self.targets for i in target.ids], device)
        chosen = logits.gather(2, ids.expand(len(logits), -1)[..., None])[..., 0]  # [node, row]
        minus = torch.zeros_like(chosen)
        kinds = [target.kind for target in self.targets for _ in target.ids]
        if "logprob" in kinds:
            rows = on_device([kind == "logprob" for kind in kinds], device)
            minus = torch.where(rows, torch.logsumexp(logits, dim=-1), minus)
        if "contrast" in kinds:
            rows = on_device([kind == "contrast" for kind in kinds], device)
            foils = on_device([i for t in self.targets for i in (t.foils or t.ids)], device)
            foil = logits.gather(2, foils.expand(len(logits), -1)[..., None])[..., 0]
            minus = torch.where(rows, foil, minus)
        owner = on_device(self.owner, device).expand(len(logits), -1)
        totals = torch.zeros(len(logits), len(self.targets), dtype=chosen.dtype, device=device)
        return totals.scatter_add(1, owner, chosen - minus)
