"""What happens when parts of the input are removed: the bars, and the referee's answer in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.report.visible import Text, label, percent, plain, shorten, times, visible
from llmxai.store import others_of

GRADIENTS, DELETION, ROLLOUT = "layer_integrated_gradients", "deletion_path", "attention_rollout"
CEILING = "leave_one_out"
TOP = 20
"""Effects kept per generated unit."""
DIGITS = 5
"""Decimals of an effect that travel to the page."""
LONGEST_TITLE = 40
"""Characters of a document's title in a note."""
NOTES = {"prompt": "", "answer": "earlier in the answer"}
OPERATORS = {
    "delete": "removed from the input",
    "baseline": "replaced by the neutral token",
    "mean": "replaced by the mean of all embeddings",
}
METHOD_NAMES = {
    GRADIENTS: "Integrated gradients",
    DELETION: "Contributions (deletion path)",
    ROLLOUT: "Attention rollout",
    CEILING: "Removal of one part at a time",
    "leave_one_out.tokens": "Leave-one-out, spread over the tokens",
    "gradient_x_input": "Gradient × input",
    "smoothgrad": "SmoothGrad",
    "gradient_shap": "GradientSHAP",
    "mc_dropout": "MC dropout",
    "deep_lift": "DeepLIFT",
    "lime": "LIME",
    "kernel_shap": "KernelSHAP",
    "context_cite": "ContextCite",
}

MOST_NAMED = 5
"""Parts that a sentence names."""


@dataclass(frozen=True)
class RemovalView:
    """The parts of the input that were removed, and how."""

    parts: tuple[Text, ...]
    ranges: tuple[tuple[int, int], ...]
    """Half-open token ranges, one per part."""
    operator: str
    """How a part was removed, in words."""
    masks: int
    """Number of random subsets."""


@dataclass(frozen=True)
class Score:
    """How well a method predicts removal: rank correlations, 1 is an exact prediction, 0 is none."""

    name: str
    lds: float | None
    """With the log-probs for random subsets of the parts (linear datamodelling score)."""
    leave_one_out: float | None
    """With the drops for one part at a time; None for removal itself."""


@dataclass(frozen=True)
class RefereeView:
    better: str
    """`gradients`, `attention`, or `neither` if undecided."""
    said: str
    read: str
    """Which methods to read; empty in pages of earlier versions."""
    scores: tuple[Score, ...]


def build_removal(explanation: Mapping[str, Any]) -> RemovalView | None:
    """The parts of `ablations`; None if nothing was removed."""
    ablations, tokens = explanation["ablations"], explanation["tokens"]
    if ablations is None:
        return None
    ranges = tuple((first, end) for first, end in ablations["units"])
    return RemovalView(
        parts=tuple(label("".join(token["text"] for token in tokens[a:b])) for a, b in ranges),
        ranges=ranges,
        operator=operator_words(ablations["operator"]),
        masks=ablations["masks"],
    )


def operator_words(operator: str) -> str:
    """How a part was removed, in words."""
    return OPERATORS.get(operator, plain(visible(f"removed ({operator})")))


def other_methods(explanation: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods of `scores` besides both gradients, rollout and its variant, in order; none before schema /3."""
    return others_of(explanation["scores"], (explanation["variant"] or {}).get("method"))


def method_name(method: str) -> str:
    """A method's name for a reader; an unknown name is shown in plain words."""
    return METHOD_NAMES.get(method, plain(visible(method.replace("_", " ").capitalize())))


def covered(ranges: Sequence[tuple[int, int]], groups: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """For each token range, the half-open range of the `groups` (which cover the sequence) that it touches."""
    owner = [number for number, (a, b) in enumerate(groups) for _ in range(a, b)]
    return tuple((owner[a], owner[b - 1] + 1) for a, b in ranges)


def build_referee(referee: Mapping[str, Any] | None, removal: RemovalView | None) -> RefereeView | None:
    """One target's verdict; None if nothing was removed."""
    if referee is None or removal is None:
        return None
    scores = tuple(
        Score(method_name(method), score["lds"], score["leave_one_out"]) for method, score in referee["scores"].items()
    )
    lds = {method: score["lds"] for method, score in referee["scores"].items()}
    said = " ".join(filter(None, (_said(referee, lds), _found(referee, removal.parts))))
    return RefereeView(_better(referee), said, _read(referee, lds), scores)


def count_referee(targets: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Number of targets by the referee's decision: `gradients`, `attention`, `neither`; all 0 without rollout."""
    asked = [target["referee"] for target in targets if target["referee"] is not None]
    answers = [_better(referee) for referee in asked if ROLLOUT in referee["scores"]]
    return {answer: answers.count(answer) for answer in ("gradients", "attention", "neither")}


def _better(referee: Mapping[str, Any]) -> str:
    return {GRADIENTS: "gradients", ROLLOUT: "attention"}.get(referee["better"], "neither")


def _read(referee: Mapping[str, Any], lds: Mapping[str, float | None]) -> str:
    """The methods to read for a token, since they predict what removal does to it."""
    if "read" not in referee:
        return ""
    if not referee["read"]:
        return "No method predicts what removal does to this token: read the measured effects only."
    first, *others = (f"{method_name(method)} ({lds[method]:.2f})" for method in referee["read"])
    also = f"; not certainly worse: {', '.join(others)}" if others else ""
    return f"Best at predicting what removal does to this token: {first}{also}."


def _found(referee: Mapping[str, Any], parts: Sequence[Text]) -> str:
    """The parts without which the log-prob falls much, and which of them each method misses; since rule 3."""
    if not (sources := referee.get("sources")):
        return ""
    said = [f"Parts that matter when removed: {_named(sources, parts)}."]
    for method, missing in referee["missed"].items():
        if method != CEILING:
            said.append(
                f"{method_name(method)} misses {_named(missing, parts)}."
                if missing
                else f"{method_name(method)} has all of them among its first sources."
            )
    return " ".join(said)


def _named(units: Sequence[int], parts: Sequence[Text]) -> str:
    more = f" and {len(units) - MOST_NAMED} more" if len(units) > MOST_NAMED else ""
    return ", ".join(f"“{plain(parts[unit])}”" for unit in units[:MOST_NAMED]) + more


def _said(referee: Mapping[str, Any], lds: Mapping[str, float | None]) -> str:
    one, two = lds.get(GRADIENTS), lds.get(ROLLOUT)
    if ROLLOUT not in lds and one is not None:
        alone = f"{one:.2f}".replace("-", "−")
        return f"There is no second method to judge; integrated gradients predict the effect with {alone}."
    if one is None or two is None:
        return "Removing parts of the input does not show which method is right: the effects cannot be ranked here."
    figures = f"integrated gradients predict the effect with {one:.2f}, attention rollout with {two:.2f}"
    if referee["interval"] is not None:
        low, high = referee["interval"]
        figures += f" (difference {referee['difference']:.2f}, 95% interval {low:.2f} to {high:.2f})"
    figures = figures.replace("-", "−")
    better = _better(referee)
    if better == "neither":
        return f"Removing parts of the input does not show which method is right: {figures}."
    winner = "the gradients" if better == "gradients" else "attention"
    weak = max(one, two) <= 0
    doubt = " But even the better one predicts nothing: trust neither." if weak else ""
    return f"Removing parts of the input supports {winner}: {figures}.{doubt}"


@dataclass(frozen=True)
class Part:
    """A part of the text that was taken away or hidden."""

    text: Text
    note: str
    """Its place: empty for the prompt, `earlier in the answer`, `all 3 mentions`; of a text that the prompt repeats its
    document or turn, or `mention 2 of 3`."""
    ranges: tuple[tuple[int, int], ...]
    """Half-open token ranges."""


@dataclass(frozen=True)
class Effect:
    """The effect of one part on a run of generated tokens."""

    part: int
    value: float
    """Nats by which the log-probability (or the lead over the foil) is lower without the part."""
    low: float
    high: float
    """The interval; equal to `value` where it was measured by one removal."""
    without: float | None
    """Probability without the part; None with a foil, and for a mean, which is that of no single text."""
    contrast: bool = False
    """Whether there is a foil."""

    @property
    def averaged(self) -> bool:
        """Whether it is a mean over random halves of the other parts."""
        return self.low != self.high

    def becomes(self, logprob: float) -> str:
        """What becomes of the probability: before and after or, on average, how many times less likely it is.

        Empty with a foil.
        """
        if self.without is not None:
            return f"{percent(math.exp(logprob))} → {percent(self.without)}"
        return "" if self.contrast else times(-self.value)


@dataclass(frozen=True, eq=False)
class Effects:
    """Every part, and its effect on every target; NaN where it is not defined."""

    parts: tuple[Part, ...]
    operator: str
    """How a part of the prompt was removed, in words."""
    confidence: str
    """Of the intervals, as a percentage."""
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    logprobs: np.ndarray
    contrasted: np.ndarray
    """Whether the target has a foil."""

    def on(self, which: Sequence[int]) -> tuple[Effect, ...]:
        """The effects on some targets together, by |value|, largest first; intervals are added up too."""
        rows = list(which)
        value, low, high = (each[rows].sum(axis=0) for each in (self.value, self.low, self.high))
        logprob, contrast = float(self.logprobs[rows].sum()), bool(self.contrasted[rows].any())
        defined = np.flatnonzero(~np.isnan(value))
        order = defined[np.argsort(-np.abs(value[defined]), kind="stable")]

        def effect(part: int) -> Effect:
            least, fall, most = (round(float(side[part]), DIGITS) for side in (low, value, high))
            without = None if contrast or least != most else math.exp(min(0.0, logprob - fall))
            return Effect(part=part, value=fall, low=least, high=most, without=without, contrast=contrast)

        return tuple(effect(int(part)) for part in order)


def build_effects(explanation: Mapping[str, Any]) -> Effects | None:
    """From `effects` of a parsed explanation.json; None if nothing was measured."""
    told, tokens = explanation["effects"], explanation["tokens"]
    if told is None:
        return None
    targets = explanation["targets"]
    shape = (len(targets), len(told["units"]))
    value, low, high = (
        np.array([[math.nan if x is None else x for x in row] for row in told[name]], dtype=float).reshape(shape)
        for name in ("effect", "low", "high")
    )
    return Effects(
        parts=_parts(told["units"], tokens, explanation.get("parts") or ()),
        operator=operator_words(explanation["ablations"]["operator"]),
        confidence=f"{told['confidence']:.0%}",
        value=value,
        low=low,
        high=high,
        logprobs=np.array([target["replayed_logprob"] for target in targets]),
        contrasted=np.array([target["foil"] is not None for target in targets]),
    )


def _parts(
    units: Sequence[Mapping[str, Any]], tokens: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, Any]]
) -> tuple[Part, ...]:
    """The parts of `effects.units`. One whose text the prompt repeats says which of them it is."""
    texts = ["".join(token["text"] for token in tokens[slice(*unit["tokens"][0])]) for unit in units]
    alike: dict[str, list[int]] = {}
    for number, (unit, text) in enumerate(zip(units, texts, strict=True)):
        if unit["kind"] == "prompt":
            alike.setdefault(text.strip(), []).append(number)
    notes = [NOTES.get(unit["kind"], f"all {len(unit['tokens'])} mentions") for unit in units]
    for same in alike.values():
        if len(same) > 1:
            places = [_place(units[number]["tokens"][0][0], given) for number in same]
            for nth, (number, place) in enumerate(zip(same, places, strict=True), 1):
                alone = place and places.count(place) == 1
                notes[number] = f"in {place}" if alone else f"mention {nth} of {len(same)}"
    return tuple(
        Part(label(text), note, tuple((start, end) for start, end in unit["tokens"]))
        for unit, text, note in zip(units, texts, notes, strict=True)
    )


def _place(token: int, given: Sequence[Mapping[str, Any]]) -> str:
    """The document or turn that a token is in, as the page calls it; empty for a raw prompt and the template."""
    part = next((part for part in given if part["first"] <= token < part["last"]), None)
    if part is None:
        return ""
    if part["kind"] == "document" and part["title"]:
        return f"“{plain(label(shorten(part['title'], limit=LONGEST_TITLE)))}”"
    return f"{part['kind']} {part['source'] + 1}"


def named(part: Part) -> str:
    """A part in a sentence."""
    return f"“{plain(part.text)}”" + (f" ({part.note})" if part.note else "")
