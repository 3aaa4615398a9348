"""Compare an explanation that was computed again with the recorded one. This is not verification.

`verify` says that nobody changed what was written down. A replay says something else: that the same software gives
about the same numbers, here and now. Floating-point sums depend on hardware, kernels and threads, so a difference
within the tolerance is expected, and one outside it proves no tampering.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RELATIVE = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
"""Allowed difference, relative to the largest |value| of the map, on the same machine; maps are stored in float32."""
ELSEWHERE = 10.0
"""Times more with another device, kernel, number of threads or torch. A choice by hand, like the table."""


@dataclass(frozen=True)
class MapDifference:
    """`largest`: the largest |difference| in the map's own unit; `relative`: over the largest |recorded value|."""

    largest: float
    relative: float
    within: bool


@dataclass(frozen=True)
class Comparison:
    """`outcome`: `within` or `outside` the tolerance, or `incomparable` where the answer itself is another."""

    outcome: str
    tolerance: float
    reason: str
    """Where the tolerance comes from."""
    differences: tuple[str, ...]
    """What differs in the circumstances: model, device, kernel, versions."""
    answer: str
    maps: Mapping[str, MapDifference]
    changed_statuses: int

    @property
    def exit(self) -> int:
        return {"within": 0, "outside": 1}.get(self.outcome, 2)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit": self.exit, "is_verification": False}


def allowed(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[float, str, tuple[str, ...]]:
    """The relative tolerance for two environments, the reason for it, and what differs between them."""
    model, again = recorded["model"], now["model"]
    pairs = {
        "model digest": (model["digest"], again["digest"]),
        "dtype": (model["dtype"], again["dtype"]),
        "attention kernel": (model["attention"], again["attention"]),
        "device": (model["device"], again["device"]),
        "quantisation": (model["quantization"], again["quantization"]),
        "hardware": (recorded["hardware"], now["hardware"]),
        "torch": (recorded["packages"].get("torch"), now["packages"].get("torch")),
        "transformers": (recorded["packages"].get("transformers"), now["packages"].get("transformers")),
        "llmxai": (recorded["llmxai"], now["llmxai"]),
    }
    differences = tuple(f"{name}: {was!r} then, {is_!r} now" for name, (was, is_) in pairs.items() if was != is_)
    coarser = max((model["dtype"], again["dtype"]), key=lambda dtype: RELATIVE.get(dtype, 0.05))
    base = RELATIVE.get(coarser, 0.05)
    where = f"{coarser}, {again['attention']} attention on {again['device']}"
    if not differences:
        return base, f"{base:g} of the largest value: {where}, the same circumstances", differences
    wide = base * ELSEWHERE
    return (
        wide,
        f"{wide:g} of the largest value: {where}, in other circumstances",
        differences,
    )


def compare(
    recorded: Mapping[str, Any],
    recorded_maps: Mapping[str, np.ndarray],
    now: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
) -> Comparison:
    """Two explanation.json with their maps: the recorded one and the one computed again."""
    tolerance, reason, differences = allowed(recorded["environment"], now["environment"])
    then, again = ([token["id"] for token in each["tokens"]] for each in (recorded, now))
    if then != again:
        place = next((i for i, pair in enumerate(zip(then, again, strict=False)) if pair[0] != pair[1]), None)
        where = f"after token {min(len(then), len(again)) - 1}" if place is None else f"at token {place}"
        answer = f"differs {where}"
        return Comparison("incomparable", tolerance, reason, differences, answer, {}, 0)
    found = {
        name: _difference(values, maps[name], tolerance)
        for name, values in sorted(recorded_maps.items())
        if name in maps and values.shape == maps[name].shape
    }
    statuses = zip(recorded["targets"], now["targets"], strict=True)
    changed = sum(before["status"] != after["status"] for before, after in statuses)
    within = bool(found) and all(each.within for each in found.values()) and not changed
    return Comparison(
        "within" if within else "outside", tolerance, reason, differences, "the same tokens", found, changed
    )


def _difference(recorded: np.ndarray, again: np.ndarray, tolerance: float) -> MapDifference:
    largest = float(np.abs(recorded - again).max(initial=0.0))
    scale = float(np.abs(recorded).max(initial=0.0))
    relative = largest / scale if scale else float(largest > 0)
    return MapDifference(largest, relative, relative <= tolerance)
