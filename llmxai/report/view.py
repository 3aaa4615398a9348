"""What the report says, as plain data: no HTML here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.report.groups import characters, sentences
from llmxai.report.precision import Precision, build_precision
from llmxai.report.provenance import Provenance, build_provenance_box
from llmxai.report.removal import ROLLOUT, Removal, build_removal, method_name
from llmxai.report.tables import Row, Setting, build_origin, build_rows, build_settings
from llmxai.report.units import Level, build_level
from llmxai.report.verdict import LIMITS, Verdict, answer_text, build_verdict
from llmxai.report.visible import Text, plain, shorten, visible
from llmxai.store import upgraded

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
    removal: Removal | None
    """The parts of the input that were taken away; None where the referee was not asked."""
    variant: str | None
    """Name of the rollout variant beside the plain one; None where it is refused, and in schema /1."""
    variant_source: Text
    refused: Text
    """Why attention rollout is refused; empty where it is not."""
    precision: Precision | None
    """What quantisation changed; None where it was not measured."""
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
    explanation = upgraded(explanation)
    refusals = explanation["refusals"]
    variant = explanation["variant"]
    if variant and variant["method"] in refusals:
        variant = None
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
        removal=build_removal(explanation),
        variant=method_name(variant["method"]) if variant else None,
        variant_source=visible(variant["source"] if variant else ""),
        refused=visible(refusals.get(ROLLOUT, "")),
        precision=build_precision(explanation),
        limits=LIMITS,
        settings=build_settings(_settings(explanation)),
        origin=build_origin(explanation),
        provenance=build_provenance_box(provenance),
        home=home,
    )


def _settings(explanation: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, those of the variant and of the referee among them; the parts themselves are shown in the text."""
    ablations = explanation["ablations"]
    return {
        **explanation["settings"],
        "variant": explanation["variant"],
        "referee": "not asked"
        if ablations is None
        else {**{key: value for key, value in ablations.items() if key != "units"}, "parts": len(ablations["units"])},
    }
