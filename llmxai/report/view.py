"""What the report says, as plain data: no HTML here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.report.provenance import Provenance, build_provenance_box
from llmxai.report.tables import Row, Setting, build_origin, build_rows, build_settings
from llmxai.report.units import Level, build_level, characters, sentences
from llmxai.report.verdict import LIMITS, Verdict, answer_text, build_verdict
from llmxai.report.visible import Text, plain, shorten, visible

LONG = 400
"""Tokens from which sentences are offered as units too."""
LONGEST_TITLE = 60


@dataclass(frozen=True)
class ReportView:
    """Everything the page shows."""

    title: str
    headline: Text
    """The answer on one line, shortened."""
    verdict: Verdict
    warnings: tuple[Text, ...]
    levels: Mapping[str, Level]
    """`words` first, then `tokens`, and `sentences` where the text is long."""
    rows: tuple[Row, ...]
    limits: tuple[str, ...]
    settings: tuple[Setting, ...]
    origin: tuple[Setting, ...]
    """Model, versions, machine and decoding."""
    provenance: Provenance | None
    home: str | None
    """Address of the run's index, relative to the page."""


def build_view(
    explanation: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
    *,
    home: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ReportView:
    """From a parsed explanation.json and its maps ([target, seq] float32) to what the page says.

    `home` is where the index of the run lies; `provenance` is for the box (llmxai/report/provenance.py).
    """
    words = [(a, b) for a, b in explanation["words"]]
    groups = {"words": words, "tokens": characters(explanation["tokens"])}
    if len(explanation["tokens"]) > LONG:
        groups["sentences"] = sentences(explanation["tokens"], words)
    answer = shorten(" ".join(answer_text(explanation).split()), limit=LONGEST_TITLE)
    return ReportView(
        title=f"Where the answer “{plain(visible(answer))}” came from",
        headline=visible(answer),
        verdict=build_verdict(explanation, maps),
        warnings=tuple(visible(warning) for warning in explanation["warnings"]),
        levels={name: build_level(explanation, maps, groups=own) for name, own in groups.items()},
        rows=build_rows(explanation),
        limits=LIMITS,
        settings=build_settings(explanation["settings"]),
        origin=build_origin(explanation),
        provenance=build_provenance_box(provenance),
        home=home,
    )
