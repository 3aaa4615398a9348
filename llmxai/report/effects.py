"""What was measured by taking parts of the text away, for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.report.removal import operator_words
from llmxai.report.visible import Text, label, plain

TOP = 20
"""Effects kept per generated unit."""
DIGITS = 5
"""Decimals of an effect that travel to the page."""
NOTES = {"prompt": "", "answer": "earlier in the answer"}


@dataclass(frozen=True)
class Part:
    """A part of the text that was taken away or hidden."""

    text: Text
    note: str
    """Where it stands: empty for the prompt, `earlier in the answer`, `all 3 mentions`."""
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
    """Probability without the part; None with a foil."""


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
        return tuple(
            Effect(
                part=int(part),
                value=round(float(value[part]), DIGITS),
                low=round(float(low[part]), DIGITS),
                high=round(float(high[part]), DIGITS),
                without=None if contrast else min(1.0, math.exp(min(0.0, logprob - float(value[part])))),
            )
            for part in order
        )


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
        parts=tuple(_part(unit, tokens) for unit in told["units"]),
        operator=operator_words(explanation["ablations"]["operator"]),
        confidence=f"{told['confidence']:.0%}",
        value=value,
        low=low,
        high=high,
        logprobs=np.array([target["replayed_logprob"] for target in targets]),
        contrasted=np.array([target["foil"] is not None for target in targets]),
    )


def _part(unit: Mapping[str, Any], tokens: Sequence[Mapping[str, Any]]) -> Part:
    ranges = tuple((start, end) for start, end in unit["tokens"])
    start, end = ranges[0]
    text = "".join(token["text"] for token in tokens[start:end])
    return Part(label(text), NOTES.get(unit["kind"], f"all {len(ranges)} mentions"), ranges)


def named(part: Part) -> str:
    """A part in a sentence."""
    return f"“{plain(part.text)}”" + (f" ({part.note})" if part.note else "")
