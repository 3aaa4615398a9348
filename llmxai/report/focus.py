"""What the page opens on: the whole answer or, where a token has a foil, that token; and what mattered most for it.

The log-probability of a whole answer is the sum of those of its tokens, so effects and contributions on it are sums
over its tokens.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.report.removal import DIGITS, Effect, Effects, build_effects, build_removal, covered
from llmxai.report.verdict import Contrast, build_contrast
from llmxai.report.visible import MOST_TIMES, Text, counted, label, nats, percent, plain, times
from llmxai.text import by_place, inside

EFFECTS, REMOVAL, DELETION, GRADIENTS = "effects", "removal", "deletion", "gradients"
BY = {
    EFFECTS: "measured by taking each part away",
    REMOVAL: "measured by taking each part away",
    DELETION: "estimated by contributions, since nothing was removed",
    GRADIENTS: "estimated by integrated gradients, since nothing was removed",
}
AVERAGED = ", on average over random halves of the rest"
STEPS = 6
"""Strengths of a colour."""
FAINT = 0.05
"""Share of the largest value below which a part is neither coloured nor listed."""
LISTED, SAID = 5, 3
"""Sources in the list, and in the sentence above it."""
SMALL = 0.005
"""A probability below this is compared as a ratio."""

Sentence = tuple[str | Text, ...]
"""Our own words, and pieces of the text, which the page quotes."""


@dataclass(frozen=True)
class Source:
    """A part of the text, and how much it matters for what the page opens on."""

    text: Text
    note: str
    """Its place, as `Part.note`."""
    value: float
    """Nats that its removal takes from the log-probability (or the lead over the foil), or that it contributes."""
    change: str
    """The same as probabilities, odds or a ratio; empty for contributions."""
    interval: str
    """Of `value`; empty where it was measured by one removal."""
    length: float
    """|value| relative to the largest, 0 to 1."""


@dataclass(frozen=True)
class Focus:
    """What the page opens on."""

    method: str
    """`effects`, `removal`, `deletion` or `gradients`: the first of them that there is."""
    by: str
    contrast: Contrast | None
    """The token and its foil; None for the whole answer."""
    whole: bool
    """Whether it is the whole answer; no for a contrast, or if only passages of the answer were explained."""
    likely: str
    """Probability of the whole answer, or odds of the token against its foil."""
    sources: tuple[Source, ...]
    sentence: Sentence
    total: float
    """Sum of the absolute values, for shares of contributions."""


def first_sources(explanation: Mapping[str, Any], *, limit: int = SAID) -> tuple[str, ...]:
    """The first sources of what the page opens on, without maps: the measured ones or, where nothing was measured,
    those of the lists that are stored with each token. A word has the label of its text.
    """
    if explanation["effects"] is not None:
        return tuple(plain(source.text) for source in build_focus(explanation, {}).sources[:limit])
    first, sums = explanation["generation"]["prompt_len"], dict[str, float]()
    tokens, rows = explanation["tokens"], focus_rows(explanation)
    owner = {i: (a, b) for a, b in explanation["words"] for i in range(a, b)}
    for row in rows:
        sources = explanation["targets"][row]["sources"]
        for source in sources.get("deletion_path") or sources["integrated_gradients"]:
            if source["index"] < first:
                a, b = owner[source["index"]]
                name = plain(label("".join(token["text"] for token in tokens[a:b])))
                sums[name] = sums.get(name, 0.0) + source["value"]
    return tuple(sorted(sums, key=lambda name: -abs(sums[name]))[:limit])


def answer_probability(explanation: Mapping[str, Any]) -> float | None:
    """Probability of the whole answer, without the mark that ends it; None if only parts of it are targets."""
    rows = answer_targets(explanation)
    return probability([explanation["targets"][row] for row in rows]) if is_whole(explanation, rows) else None


def in_words(sentence: Sentence, *, quoted: bool = True) -> str:
    """A sentence as plain text, with quotes around the pieces of the text."""
    marks = "“{}”" if quoted else "{}"
    return "".join(part if isinstance(part, str) else marks.format(plain(part)) for part in sentence)


def focus_rows(explanation: Mapping[str, Any]) -> list[int]:
    """The targets that the page opens on: the one that has a foil, else those that make up the answer, each as large
    as possible, without its end mark."""
    against = [row for row, target in enumerate(explanation["targets"]) if target["foil"] is not None]
    return against[:1] or answer_targets(explanation) or list(range(len(explanation["targets"])))


def answer_targets(explanation: Mapping[str, Any]) -> list[int]:
    """The targets that the answer is made of, without its end mark; none inside another."""
    return inside(by_place(target["tokens"] for target in explanation["targets"]), *_answer(explanation))


def is_whole(explanation: Mapping[str, Any], rows: Sequence[int]) -> bool:
    """Whether these targets make up the whole answer, without its end mark."""
    first, end = _answer(explanation)
    spans = [explanation["targets"][row]["tokens"] for row in rows]
    return bool(sum(stop - start for start, stop in spans) >= end - first)


def _answer(explanation: Mapping[str, Any]) -> tuple[int, int]:
    first, n = explanation["generation"]["prompt_len"], len(explanation["tokens"])
    return first, n - (explanation["generation"]["stop"] == "eos" and n - first > 1)


def focus_method(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> str:
    """By what the text is coloured at first."""
    if explanation["effects"] is not None:
        return EFFECTS
    if explanation["ablations"] is not None:
        return REMOVAL
    return DELETION if "deletion_path" in maps else GRADIENTS


@dataclass(frozen=True)
class _Found:
    """A part of the text with its value on the focus."""

    text: Text
    note: str
    ranges: tuple[tuple[int, int], ...]
    value: float
    low: float
    high: float

    @property
    def averaged(self) -> bool:
        """Whether the value is a mean over random halves of the other parts."""
        return self.low != self.high


def build_focus(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> Focus:
    rows, targets = focus_rows(explanation), explanation["targets"]
    own = [targets[row] for row in rows]
    contrast, method = build_contrast(own), focus_method(explanation, maps)
    everything = _parts(explanation, maps, method, rows)
    found = _distinct(_strong(everything))[:LISTED]
    most = max((abs(one.value) for one in found), default=1.0)
    before = float(own[0]["f_input"]) if contrast else sum(target["replayed_logprob"] for target in own)
    sources = tuple(
        Source(
            text=one.text,
            note=one.note,
            value=one.value,
            change=_changed(before, one, contrast is not None) if method in (EFFECTS, REMOVAL) else "",
            interval="" if one.low == one.high else f"{nats(one.low)} to {nats(one.high)}",
            length=abs(one.value) / most,
        )
        for one in found
    )
    return Focus(
        method=method,
        by=BY[method] + (AVERAGED if any(source.interval for source in sources) else ""),
        contrast=contrast,
        whole=contrast is None and is_whole(explanation, rows),
        likely=odds(before) if contrast else rounded(math.exp(before)),
        sources=sources,
        sentence=_mattered(sources, before, contrast, method, whole=is_whole(explanation, rows)),
        total=float(sum(abs(one.value) for one in everything)),
    )


def focus_units(
    explanation: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
    groups: Sequence[tuple[int, int]],
) -> tuple[tuple[int, float], ...]:
    """The units of the text that the focus colours, with their values, strongest first.

    A unit that several parts touch has the value of the strongest.
    """
    rows, method = focus_rows(explanation), focus_method(explanation, maps)
    found: dict[int, float] = {}
    for part in _strong(_parts(explanation, maps, method, rows)):
        for start, end in covered(part.ranges, groups):
            for unit in range(start, end):
                if abs(part.value) > abs(found.get(unit, 0.0)):
                    found[unit] = part.value
    return tuple((unit, round(value, DIGITS)) for unit, value in sorted(found.items(), key=lambda one: -abs(one[1])))


def _parts(
    explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray], method: str, rows: Sequence[int]
) -> list[_Found]:
    """All parts that the focus could depend on; those of the prompt alone for the whole answer."""
    first, tokens = explanation["generation"]["prompt_len"], explanation["tokens"]
    if method == EFFECTS:
        effects = build_effects(explanation)
        assert effects is not None
        whole = build_contrast([explanation["targets"][row] for row in rows]) is None
        return [
            _effect(effects, one)
            for one in effects.on(rows)
            if (not whole or effects.parts[one.part].ranges[-1][1] <= first) and _clear(effects, one, rows)
        ]
    if method == REMOVAL:
        removal = build_removal(explanation)
        assert removal is not None
        values = maps["leave_one_out"][rows].astype(float).sum(axis=0)
        return [
            _Found(text, "", (place,), float(value), float(value), float(value))
            for text, place, value in zip(removal.parts, removal.ranges, values, strict=True)
        ]
    sums = maps["deletion_path" if method == DELETION else "integrated_gradients"][rows].astype(float).sum(axis=0)
    words = [(a, b) for a, b in explanation["words"] if b <= first]
    return [
        _Found(label("".join(token["text"] for token in tokens[a:b])), "", ((a, b),), *[float(sums[a:b].sum())] * 3)
        for a, b in words
    ]


def came_from(effects: Effects, rows: Sequence[int], *, before: float, prompt_len: int, contrast: bool) -> Sentence:
    """The part of the prompt, alone or with all its mentions, without which some targets fall the most, in a sentence.

    Empty if no such fall is beyond what the measurement can tell.
    """
    for one in effects.on(rows):
        part = effects.parts[one.part]
        if part.ranges[0][0] < prompt_len and one.value > 0 and _clear(effects, one, rows):
            noted = f" ({part.note})" if part.note else ""
            change = _changed(before, one, contrast)
            if "→" not in change:
                mean = " on average" if one.averaged else ""
                return ("It depends most on ", part.text, f"{noted}: without it, {_ratio(change)}{mean}.")
            old, _, new = change.partition(" → ")
            likely = "" if contrast else " likely"
            return ("It depends most on ", part.text, f"{noted}: without it, it is {new}{likely} instead of {old}.")
    return ()


def _effect(effects: Effects, one: Effect) -> _Found:
    part = effects.parts[one.part]
    return _Found(part.text, part.note, part.ranges, one.value, one.low, one.high)


def _clear(effects: Effects, one: Effect, rows: Sequence[int]) -> bool:
    """Whether the effect differs from zero beyond its interval, as a whole or on one of the tokens.

    The intervals of a sum are added up, which is too wide for a long answer.
    """
    if one.low > 0 or one.high < 0:
        return True
    return bool(((effects.low[rows, one.part] > 0) | (effects.high[rows, one.part] < 0)).any())


def _strong(parts: Sequence[_Found]) -> list[_Found]:
    most = max((abs(part.value) for part in parts), default=0.0)
    return sorted(
        (part for part in parts if part.value and abs(part.value) >= FAINT * most), key=lambda p: -abs(p.value)
    )


def _distinct(parts: Sequence[_Found]) -> list[_Found]:
    """A word alone and with all its mentions counts once, with the larger value."""
    kept: list[_Found] = []
    taken: set[tuple[int, int]] = set()
    for part in parts:
        if not taken & set(part.ranges):
            kept.append(part)
            taken |= set(part.ranges)
    return kept


def _mattered(
    sources: Sequence[Source], before: float, contrast: Contrast | None, method: str, *, whole: bool
) -> Sentence:
    """The first sources in one sentence."""
    subject = "this answer" if whole else "this part of the answer"
    if not sources:
        return ("No single part of the prompt changes it beyond what the measurement can tell.",)
    if method in (DELETION, GRADIENTS):
        listed: Sentence = ("It rests most on ",)
        for number, source in enumerate(sources[:SAID]):
            listed += (", " if number else "", source.text)
        return (*listed, ", by estimate: nothing was removed to measure it.")
    said: Sentence = ()
    for number, source in enumerate(sources[:SAID]):
        noted = f" ({source.note})" if source.note else ""
        if number:
            said += ("; without ", source.text, f"{noted} {_after(source)}")
        elif contrast:
            after = _ratio(source.change) if source.interval else f"it is {_after(source)}"
            said += (
                *(contrast.token, f" leads {odds(before)} against ", contrast.foil, ". Without "),
                *(source.text, f"{noted} {after}{_on_average(source)}"),
            )
        else:
            said += ("Without ", source.text, f"{noted} {subject} is {_said_first(source, before)}")
    return (*said, ".")


def _on_average(source: Source) -> str:
    return " on average" if source.interval else ""


def _said_first(source: Source, before: float) -> str:
    if "→" not in source.change:
        return source.change + _on_average(source)
    return f"{_after(source)} likely instead of {rounded(math.exp(before))}"


def _after(source: Source) -> str:
    return source.change.rpartition("→ ")[2].removeprefix("odds ")


def _ratio(change: str) -> str:
    """`it is 5 times less likely`, or `its odds are 5 times smaller`."""
    return change.replace("odds", "its odds are", 1) if change.startswith("odds") else f"it is {change}"


def _changed(before: float, one: _Found | Effect, contrast: bool) -> str:
    """What becomes of the probability or the odds without a part.

    A mean over random halves is not what becomes of the text as a whole, so it is said as a ratio: the exponential of a
    mean fall in nats is the geometric mean of the ratios.
    """
    if contrast and one.averaged:
        return times(-one.value, what="odds")
    if contrast:
        return f"{odds(before)} → {odds(before - one.value)}"
    if one.averaged or math.exp(before) < SMALL:
        return times(-one.value)
    return f"{rounded(math.exp(before))} → {rounded(math.exp(min(0.0, before - one.value)))}"


def odds(lead: float) -> str:
    """A lead in nats as odds: `1,200 : 1`, or `1 : 3` for a token that is behind."""
    ratio = math.exp(min(abs(lead), 50.0))
    shown = "over a million" if ratio > MOST_TIMES else counted(ratio)
    return f"{shown} : 1" if lead >= 0 else f"1 : {shown}"


def rounded(probability: float) -> str:
    """A probability as people say it: 57%, 5.7%, 99.8%. That of a long answer may be too small for a number, but it is
    not zero.
    """
    if 0.1 <= probability < 0.985:
        return f"{100 * probability:.0f}%"
    return percent(max(probability, sys.float_info.min))


def probability(targets: Sequence[Mapping[str, Any]]) -> float:
    """Of these tokens, one after the other."""
    return math.exp(min(0.0, sum(target["replayed_logprob"] for target in targets)))
