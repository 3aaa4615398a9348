"""Everything that the page shows, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.names import SUPPLIED, Role, Status
from llmxai.report.context import ContextView, build_context
from llmxai.report.focus import in_words
from llmxai.report.removal import DELETION, ROLLOUT, Effects, RemovalView, build_effects, build_removal, method_name
from llmxai.report.summary import Summary, build_summary
from llmxai.report.tables import (
    SHOWN,
    Row,
    Setting,
    build_asked,
    build_computed,
    build_origin,
    build_rows,
    build_settings,
    signed,
)
from llmxai.report.units import AlsoView, Level, build_also, build_level, joined_groups
from llmxai.report.verdict import EARLIER_LIMITS, LIMITS, STATUS_TEXT, VerdictView, build_verdict
from llmxai.report.visible import Text, characters, label, percent, shorten, visible
from llmxai.store import upgraded
from llmxai.text import sentences


@dataclass(frozen=True)
class PrecisionRow:
    """One generated token on the quantised weights and on the full ones."""

    number: int
    text: Text
    probability: str
    full_probability: str
    difference: str
    """Of the log-prob, in nats; above 0 if quantisation made the token more likely."""
    rank: int
    """On the full weights."""
    cosine: str
    same_source: str
    status: str
    sign: str
    """Of the status on the full weights."""
    changed: bool
    """Whether the status differs."""


@dataclass(frozen=True)
class Precision:
    model: Text
    dtype: Text
    rows: tuple[PrecisionRow, ...]


def build_precision(explanation: Mapping[str, Any]) -> Precision | None:
    """None if nothing was compared."""
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


@dataclass(frozen=True)
class Provenance:
    record: Text
    """Id of the record in the log; empty if unknown."""
    command: Text
    """The command that checks it; empty if unknown."""
    details: tuple[Setting, ...]


def build_provenance_box(provenance: Mapping[str, Any] | None) -> Provenance | None:
    """From a mapping made by the code that keeps the records.

    `record` is the record's id, `verify` the exact command that checks it; everything else (digests, key, sign-off) is
    shown row by row, with dotted keys for nested mappings.
    """
    if provenance is None:
        return None
    rest = {key: value for key, value in provenance.items() if key not in ("record", "verify")}
    return Provenance(
        record=visible(str(provenance.get("record", ""))),
        command=visible(str(provenance.get("verify", ""))),
        details=build_settings(rest),
    )


@dataclass(frozen=True)
class TracedRow:
    """A part of the prompt, and its share of a passage."""

    text: Text
    share: str
    """Traced through the answer."""
    direct: str
    """Of the passage's own contributions."""
    path: tuple[tuple[Text, str, bool], ...]
    """The path that carries the most: each step's text, what the next one loses without it (nats; empty if that was not
    measured), and whether its own sources are those of a longer passage."""


@dataclass(frozen=True)
class Passage:
    """The answer, a sentence or a word of it, and where it came from."""

    kind: str
    text: Text
    traced: tuple[TracedRow, ...]
    direct: tuple[tuple[Text, str, bool], ...]
    """Text, share, and whether it is a part of the answer itself."""


@dataclass(frozen=True)
class Tracing:
    method: str
    parts: tuple[tuple[Text, bool, bool], ...]
    """The parts of the text between which shares are followed, whether each is one of the answer's, and whether it
    hands on the contributions of a longer passage."""
    passages: tuple[Passage, ...]
    own: tuple[int, int]
    """How many parts of the answer hand on contributions of their own, and how many hand on any."""


def build_trace(explanation: Mapping[str, Any]) -> Tracing | None:
    """The passages of `trace`, the answer first; a sentence or word that is the whole answer is not repeated.

    None in explanations of earlier versions.
    """
    told = explanation["trace"]
    if told is None:
        return None
    passages = {tuple(passage["tokens"]): passage for passage in reversed(told["passages"])}  # of equal ones the first
    chosen = list(reversed(passages.values()))[:PASSAGES]
    handing = [unit for unit in told["units"] if unit["kind"] == "answer" and unit.get("row", unit["tokens"])]
    return Tracing(
        method=method_name(told["method"]),
        parts=tuple((label(unit["text"]), unit["kind"] == "answer", is_shared(unit)) for unit in told["units"]),
        passages=tuple(_passage(told["units"], passage) for passage in chosen),
        own=(sum(not is_shared(unit) for unit in handing), len(handing)),
    )


def is_shared(unit: Mapping[str, Any]) -> bool:
    """Whether a traced unit hands on the contributions of a longer passage, as its own were not computed."""
    return unit.get("row") not in (None, unit["tokens"])


def _passage(units: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> Passage:
    return Passage(
        kind=told["kind"],
        text=label(shorten(told["text"], limit=LONGEST_PASSAGE)),
        traced=tuple(
            TracedRow(
                text=label(source["text"]),
                share=f"{source['share']:.0%}",
                direct=f"{source['direct']:.0%}",
                path=tuple(
                    (
                        label(step["text"]),
                        "" if step["effect"] is None else signed(step["effect"]),
                        is_shared(units[step["unit"]]),
                    )
                    for step in source["path"]
                ),
            )
            for source in told["traced"][:SHOWN]
        ),
        direct=tuple(
            (label(one["text"]), f"{one['share']:.0%}", units[one["unit"]]["kind"] == "answer")
            for one in told["direct"][:SHOWN]
        ),
    )


PASSAGES = 120
"""Passages whose sources the page lists; the exported table has all of them."""
LONGEST_PASSAGE = 200
"""Characters of a passage that the page quotes."""


@dataclass(frozen=True)
class Reviewed:
    """What a reviewer's marks refer to; both empty for a page without a record."""

    record: str
    explanation: str
    """SHA-256 of explanation.json."""


def build_reviewed(provenance: Mapping[str, Any] | None) -> Reviewed:
    """From the mapping of `build_provenance_box`."""
    told = provenance or {}
    digests = told.get("sha256")
    return Reviewed(
        record=str(told.get("record", "")),
        explanation=str(digests.get("explanation.json", "")) if isinstance(digests, Mapping) else "",
    )


LONG = 400
"""From this many tokens on, sentences are also offered as units."""


@dataclass(frozen=True)
class ReportView:
    """Everything the page shows."""

    title: str
    summary: Summary
    """The first screen."""
    verdict: VerdictView
    warnings: tuple[Text, ...]
    levels: Mapping[str, Level]
    """`words` first, then `tokens`, `sentences` if the text is long, and `passages` where targets hold others. A
    target of several words is one unit everywhere."""
    ends: tuple[int, ...]
    """The word that is the answer's end mark, if there is one."""
    statuses: tuple[str, ...]
    """Those that a token of the answer has."""
    rows: tuple[Row, ...]
    trace: Tracing | None
    """The sources of the answer, traced through its own words; None in explanations of earlier versions."""
    context: ContextView | None
    """Documents and turns; None for a short prompt of one turn."""
    effects: Effects | None
    """The measured effects; None if nothing was removed, and before rule 4."""
    deletion: bool
    """Whether there are contributions along the deletion path."""
    deletion_refused: Text
    """Why there are none; empty if there are, and before rule 4."""
    removal: RemovalView | None
    """The parts of the input that were removed; None if nothing was removed."""
    variant: str | None
    """Name of the rollout variant; None if it is refused, and in schema /1."""
    variant_source: Text
    refused: Text
    """Why attention rollout is refused; empty if it is not."""
    also: tuple[AlsoView, ...]
    """The other requested methods."""
    precision: Precision | None
    """What quantisation changed; None if not measured."""
    limits: tuple[str, ...]
    asked: tuple[Setting, ...]
    """The requested settings, each with the value that was used if it differs; none before /3."""
    settings: tuple[Setting, ...]
    """The computed settings that were not requested; before /3, all settings."""
    origin: tuple[Setting, ...]
    """Model, versions, machine and decoding."""
    provenance: Provenance | None
    reviewed: Reviewed
    home: str | None
    """Address of the run's index, relative to the page."""


def build_view(
    explanation: Mapping[str, Any],
    maps: Mapping[str, np.ndarray],
    *,
    home: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ReportView:
    """The page as data, from a parsed explanation.json and its maps ([target, seq] float32).

    `home` is the address of the run's index; `provenance` is for the box (llmxai/report/provenance.py).
    """
    explanation = upgraded(explanation)
    also = build_also(explanation, maps)
    refusals = explanation["refusals"]
    variant = explanation["variant"]
    if variant and variant["method"] in refusals:
        variant = None
    words = [(a, b) for a, b in explanation["words"]]
    groups = {"words": words, "tokens": characters(explanation["tokens"])}
    if len(explanation["tokens"]) > LONG:
        tokens = explanation["tokens"]
        groups["sentences"] = sentences([t["text"] for t in tokens], [Role(t["role"]) for t in tokens], words)
    targets = explanation["targets"]
    groups = {name: joined_groups(own, targets) for name, own in groups.items()}
    if (outer := joined_groups(words, targets, outer=True)) != groups["words"]:
        groups["passages"] = outer
    verdict = build_verdict(explanation, maps)
    summary = build_summary(explanation, maps, verdict.sentences)
    return ReportView(
        title=in_words(summary.title, quoted=verdict.contrast is None),
        summary=summary,
        verdict=verdict,
        warnings=tuple(visible(warning) for warning in explanation["warnings"] if warning != SUPPLIED),
        levels={name: build_level(explanation, maps, groups=own) for name, own in groups.items()},
        ends=(len(groups["words"]) - 1,) if explanation["generation"]["stop"] == "eos" else (),
        statuses=tuple(s for s in STATUS_TEXT if any(target["status"] == s for target in explanation["targets"])),
        rows=build_rows(explanation, also=also),
        trace=build_trace(explanation),
        context=build_context(explanation),
        effects=build_effects(explanation),
        deletion="deletion_path" in maps,
        deletion_refused=visible(refusals.get(DELETION, "")),
        removal=build_removal(explanation),
        variant=method_name(variant["method"]) if variant else None,
        variant_source=visible(variant["source"] if variant else ""),
        refused=visible(refusals.get(ROLLOUT, "")),
        also=also,
        precision=build_precision(explanation),
        limits=LIMITS if explanation["verdict"] is not None else EARLIER_LIMITS,
        asked=build_asked(explanation),
        settings=build_computed(explanation),
        origin=build_origin(explanation),
        provenance=build_provenance_box(provenance),
        reviewed=build_reviewed(provenance),
        home=home,
    )
