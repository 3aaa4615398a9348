"""What the report says, as plain data: no HTML here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmxai.report.units import Level, build_level
from llmxai.report.visible import label, visible
from llmxai.types import Role, Status

MAIN_SOURCES = 5
STATUS_TEXT = {
    Status.AGREE: ("✓", "gradients converged, attention is informative, and both rank the sources alike"),
    Status.DILUTED: ("~", "attention says no more than its mask and depth alone would: do not read it here"),
    Status.DISAGREE: ("≠", "both are informative and do not rank the sources alike: trust neither alone"),
    Status.UNCONVERGED: ("!", "the gradient sum misses its own total by too much: do not read it here"),
}
LIMITS = (
    "An attribution says what the answer is sensitive to. It does not say that the answer is true, nor why the model "
    "was trained to give it.",
    "Two methods that agree are no proof that either describes what the model does inside; two that disagree show that "
    "at least one is not to be trusted here.",
    "Signed values depend on the baseline: they compare the real tokens with a neutral one, as named in the settings.",
    "Tokens that are held real (the template, for example) get no gradient value, though the model does use them.",
    "The thresholds behind the statuses are a first choice and are not calibrated on known sources yet.",
    "Small values are little related to what happens when the token is removed. Read the first few bars, not the tail.",
)


@dataclass(frozen=True)
class Turn:
    """One stretch of text with one role."""

    role: str
    text: str


@dataclass(frozen=True)
class StatusCount:
    status: str
    sign: str
    count: int
    meaning: str


@dataclass(frozen=True)
class Row:
    """One generated token in the table that needs no script."""

    number: int
    text: str
    probability: str
    rank: int
    status: str
    sign: str
    reason: str
    gap: str
    tolerance: str
    nodes: int
    gradient_sources: tuple[tuple[str, str, str], ...]
    """(text, signed value in nats, share)."""
    rollout_sources: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class ReportView:
    """Everything the page shows."""

    title: str
    created: str
    question: tuple[Turn, ...]
    answer: str
    main_sources: tuple[tuple[str, str], ...]
    """(word, share) of the prompt's words over the whole answer, by integrated gradients."""
    sentences: tuple[str, ...]
    counts: tuple[StatusCount, ...]
    warnings: tuple[str, ...]
    limits: tuple[str, ...]
    words: Level
    rows: tuple[Row, ...]
    settings: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    data: Mapping[str, Any]
    """What the script gets: units and top sources as small integers, never a whole map."""


def build_view(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> ReportView:
    """From a parsed explanation.json and its maps ([target, seq] float32) to what the page says."""
    tokens, targets = explanation["tokens"], explanation["targets"]
    first = explanation["generation"]["prompt_len"]
    words = build_level(explanation, maps, groups=[(a, b) for a, b in explanation["words"]])
    singles = build_level(explanation, maps, groups=_characters(tokens))
    end = len(tokens) - (explanation["generation"]["stop"] == "eos")  # the end mark is a token, but no text
    answer = visible("".join(token["text"] for token in tokens[first:end])).strip() or "(nothing)"
    return ReportView(
        title=f"Why did the model say “{_short(answer)}”?",
        created=explanation["created"],
        question=_turns(tokens[:first]),
        answer=answer,
        main_sources=_main_sources(explanation, maps),
        sentences=_sentences(explanation),
        counts=_counts(targets),
        warnings=tuple(explanation["warnings"]),
        limits=LIMITS,
        words=words,
        rows=tuple(_row(tokens, target, number + 1) for number, target in enumerate(targets)),
        settings=_flat(explanation["settings"]),
        provenance=_flat(
            {
                "schema": explanation["schema"],
                "created": explanation["created"],
                "decoding": explanation["generation"]["decoding"],
                **explanation["environment"],
            }
        ),
        data={
            "levels": {"words": words.data, "tokens": singles.data},
            "statuses": {str(s): {"sign": sign, "meaning": text} for s, (sign, text) in STATUS_TEXT.items()},
        },
    )


def _characters(tokens: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """One group a token, but tokens that are part of one character together."""
    groups, start = [], 0
    for i, token in enumerate(tokens):
        if token["text"] or i == len(tokens) - 1:
            groups.append((start, i + 1))
            start = i + 1
    return groups


def _turns(tokens: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """What people wrote, without the template around it."""
    turns: list[Turn] = []
    before = None
    for token in tokens:
        role = token["role"]
        if role not in (Role.TEMPLATE, Role.BOS):
            text = visible(token["text"])
            turns = [*turns[:-1], Turn(role, turns[-1].text + text)] if role == before else [*turns, Turn(role, text)]
        before = role
    return tuple(turns)


def _main_sources(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> tuple[tuple[str, str], ...]:
    first = explanation["generation"]["prompt_len"]
    converged = np.array([target["converged"] for target in explanation["targets"]])
    weight = np.abs(maps["integrated_gradients"][converged]).sum(axis=0)
    total = float(weight[:first].sum())
    if not total:
        return ()
    sums = [
        (float(weight[a:b].sum()), "".join(token["text"] for token in explanation["tokens"][a:b]))
        for a, b in explanation["words"]
        if b <= first
        and any(character.isalnum() for token in explanation["tokens"][a:b] for character in token["text"])
    ]
    best = sorted(sums, key=lambda pair: -pair[0])[:MAIN_SOURCES]
    return tuple((label(text), f"{value / total:.0%}") for value, text in best if value > 0)


def _sentences(explanation: Mapping[str, Any]) -> tuple[str, ...]:
    targets = explanation["targets"]
    n = len(targets)
    bad = sum(not target["converged"] for target in targets)
    diluted = sum(target["status"] == Status.DILUTED for target in targets)
    sink = float(np.median([target["rollout"]["sink_mass"] for target in targets]))
    converged = (
        f"All {n} gradient attributions add up to the change they explain, within their tolerance."
        if not bad
        else f"{bad} of {n} gradient attributions miss the change they explain by more than their tolerance; "
        f"they are marked and left out of the main sources."
    )
    attention = (
        f"Attention rollout is diluted for {diluted} of {n} tokens (typically {sink:.0%} of its mass is on the "
        f"first token, whatever it says): for those, read the gradient bars and not the attention bars."
        if diluted
        else f"Attention rollout differs from what mask and depth alone would give for all {n} tokens."
    )
    return converged, attention


def _counts(targets: Sequence[Mapping[str, Any]]) -> tuple[StatusCount, ...]:
    return tuple(
        StatusCount(str(status), sign, sum(target["status"] == status for target in targets), meaning)
        for status, (sign, meaning) in STATUS_TEXT.items()
    )


def _row(tokens: Sequence[Mapping[str, Any]], target: Mapping[str, Any], number: int) -> Row:
    sources = target["sources"]
    return Row(
        number=number,
        text=label(target["text"]) or "(part of a character)",
        probability=f"{math.exp(target['replayed_logprob']):.1%}",
        rank=target["rank"],
        status=target["status"],
        sign=STATUS_TEXT[Status(target["status"])][0],
        reason=target["reason"],
        gap=f"{target['gap']:+.3f}",
        tolerance=f"{target['tolerance']:.3f}",
        nodes=target["nodes"],
        gradient_sources=tuple(
            (label(tokens[s["index"]]["text"]), f"{s['value']:+.3f}", f"{s['share']:.0%}")
            for s in sources["integrated_gradients"][:MAIN_SOURCES]
        ),
        rollout_sources=tuple(
            (label(tokens[s["index"]]["text"]), f"{s['value']:.2%}", f"{s['share']:.0%}")
            for s in sources["rollout"][:MAIN_SOURCES]
        ),
    )


def _flat(values: Mapping[str, Any], *, prefix: str = "") -> tuple[tuple[str, str], ...]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows.extend(_flat(value, prefix=f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((prefix + key, visible(text)))
    return tuple(rows)


def _short(text: str, *, limit: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
