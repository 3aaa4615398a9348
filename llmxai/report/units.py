"""The text cut into units (words, or tokens), and for every generated unit its top sources under both methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.report.visible import label, visible
from llmxai.types import Role, Status

TOP = 20
GRADIENT_SCALE = 10_000
"""Gradient values travel as whole ten-thousandths of a nat ..."""
ROLLOUT_SCALE = 1_000_000
"""... and rollout shares as whole millionths."""
WORST_FIRST = (Status.UNCONVERGED, Status.DISAGREE, Status.DILUTED, Status.AGREE)


@dataclass(frozen=True)
class Unit:
    """One word or token of the text."""

    text: str
    role: str
    status: str
    """Of a generated unit; empty for the rest."""


@dataclass(frozen=True)
class Level:
    """The whole text at one granularity."""

    units: tuple[Unit, ...]
    data: Mapping[str, Any]


def build_level(
    explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray], *, groups: Sequence[tuple[int, int]]
) -> Level:
    """Join tokens to the units of `groups` (half-open, covering the sequence).

    Attributions of log-probs add up, over sources and over the targets of one unit. Rollout rows add up over sources
    and are averaged over the targets of one unit.
    """
    tokens, targets = explanation["tokens"], explanation["targets"]
    first = explanation["generation"]["prompt_len"]
    starts = np.array([a for a, _ in groups])
    gradients = np.add.reduceat(maps["integrated_gradients"].astype(float), starts, axis=1)
    rollout = np.add.reduceat(maps["rollout"].astype(float), starts, axis=1)
    units = tuple(_unit(tokens[a:b], _own(targets, a, b, first)) for a, b in groups)
    structure = [i for i, unit in enumerate(units) if unit.role in (Role.TEMPLATE, Role.BOS)]
    rows = []
    for number, (a, b) in enumerate(groups):
        if b > first:
            which = slice(max(a, first) - first, b - first)
            row = rollout[which].mean(axis=0)
            rows.append(
                {
                    "unit": number,
                    "status": units[number].status,
                    "structure": round(float(row[structure].sum()), 6),
                    "gradients": _top(gradients[which].sum(axis=0), scale=GRADIENT_SCALE),
                    "total": float(np.abs(gradients[which].sum(axis=0)).sum()),
                    "rollout": _top(row, scale=ROLLOUT_SCALE),
                    **_figures(_own(targets, a, b, first), units[number].status),
                }
            )
    data = {
        "units": [[unit.text, unit.role, unit.status, label(unit.text) or "·"] for unit in units],
        "targets": rows,
        "scale": {"gradients": GRADIENT_SCALE, "rollout": ROLLOUT_SCALE},
    }
    return Level(units=units, data=data)


def _own(targets: Sequence[Mapping[str, Any]], a: int, b: int, first: int) -> Sequence[Mapping[str, Any]]:
    """The targets among tokens [a, b)."""
    return targets[max(a, first) - first : b - first] if b > first else []


def _unit(tokens: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> Unit:
    status = next((s for s in WORST_FIRST if any(target["status"] == s for target in own)), "")
    return Unit(text=visible("".join(token["text"] for token in tokens)), role=tokens[-1]["role"], status=str(status))


def _figures(own: Sequence[Mapping[str, Any]], status: str) -> dict[str, Any]:
    """One unit's numbers: sums where they add up, else those of the token whose status it carries."""
    worst = next(target for target in own if target["status"] == status)
    logprob = sum(target["replayed_logprob"] for target in own)
    return {
        "reason": worst["reason"],
        "joined": len(own),
        "probability": math.exp(logprob),
        "logprob": round(logprob, 5),
        "rank": max(target["rank"] for target in own),
        "gap": round(sum(target["gap"] for target in own), 5),
        "tolerance": round(sum(target["tolerance"] for target in own), 5),
        "nodes": sum(target["nodes"] for target in own),
        "f_input": round(sum(target["f_input"] for target in own), 4),
        "f_baseline": round(sum(target["f_baseline"] for target in own), 4),
        **worst["agreement"],
        **worst["rollout"],
    }


def _top(values: np.ndarray, *, scale: int) -> list[list[int]]:
    """[[unit, round(value x scale)]] of the largest |value|, without those that round to 0."""
    order = np.argsort(-np.abs(values), kind="stable")[:TOP]
    pairs = [[int(i), round(float(values[i]) * scale)] for i in order]
    return [pair for pair in pairs if pair[1]]
