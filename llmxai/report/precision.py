"""What quantisation changed, token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmxai.names import Status
from llmxai.report.tables import percent, signed
from llmxai.report.verdict import STATUS_TEXT
from llmxai.report.visible import Text, label, visible


@dataclass(frozen=True)
class PrecisionRow:
    """One generated token on the quantised weights and on the full ones."""

    number: int
    text: Text
    probability: str
    full_probability: str
    difference: str
    """Of the log-prob, in nats: above 0 where quantisation made the token likelier."""
    rank: int
    """On the full weights."""
    cosine: str
    same_source: str
    status: str
    sign: str
    """Of the status on the full weights."""
    changed: bool
    """Whether the status is another one."""


@dataclass(frozen=True)
class Precision:
    model: Text
    dtype: Text
    rows: tuple[PrecisionRow, ...]


def build_precision(explanation: Mapping[str, Any]) -> Precision | None:
    """None where nothing was compared."""
    told = explanation["full_precision"]
    if told is None:
        return None
    pairs = zip(explanation["targets"], told["targets"], strict=True)
    return Precision(
        model=visible(told["model"]),
        dtype=visible(told["dtype"]),
        rows=tuple(_row(number, own, full) for number, (own, full) in enumerate(pairs, start=1)),
    )


def _row(number: int, own: Mapping[str, Any], full: Mapping[str, Any]) -> PrecisionRow:
    return PrecisionRow(
        number=number,
        text=label(own["text"]),
        probability=percent(math.exp(own["replayed_logprob"])),
        full_probability=percent(math.exp(full["logprob"])),
        difference=signed(full["difference"]),
        rank=full["rank"],
        cosine="–" if full["cosine"] is None else f"{full['cosine']:.3f}",
        same_source="yes" if full["same_source"] else "no",
        status=full["status"],
        sign=STATUS_TEXT[Status(full["status"])][0],
        changed=full["status"] != own["status"],
    )
