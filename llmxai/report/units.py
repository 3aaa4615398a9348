"""The text cut into units (words, tokens or sentences), and the top sources of every generated unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmxai.names import AttentionStatus, Role
from llmxai.report.focus import Sentence, came_from, focus_units
from llmxai.report.removal import (
    TOP,
    Effect,
    Effects,
    RefereeView,
    RemovalView,
    build_effects,
    build_referee,
    build_removal,
    covered,
    method_name,
    other_methods,
)
from llmxai.report.verdict import Contrast, build_contrast, is_diluted, word_status
from llmxai.report.visible import Text, label, plain, visible
from llmxai.store import stored_name
from llmxai.text import by_place, inside

TRACED = 8
"""Traced sources kept per generated unit."""
TOP_STRUCTURE = 5
"""Start mark and template units kept per generated unit, for colouring."""
GRADIENT_SCALE = 10_000
"""Gradient values are sent as whole ten-thousandths of a nat ..."""
ROLLOUT_SCALE = 1_000_000_000
"""... and rollout shares as whole billionths: on deep models all words together may have a millionth."""
DIGITS = 4
"""Significant digits of the values of other methods, whose units differ."""
STRUCTURE = (Role.BOS, Role.TEMPLATE)
ROLE_NAMES = {
    Role.BOS: "Start mark and chat template (added automatically)",
    Role.TEMPLATE: "Start mark and chat template (added automatically)",
    Role.SYSTEM: "System instruction",
    Role.USER: "User",
    Role.TOOL: "Tool or its result",
    Role.CONTEXT: "Earlier turns of the model",
    Role.DOCUMENT: "Document",
    Role.THINKING: "Reasoning of the model",
    Role.GENERATED: "Answer of the model",
}

AGREEMENT = (
    *("spearman", "spearman_p", "recency_p", "adjusted_p", "kendall"),
    *("top_k", "top_k_overlap", "rank_biased_overlap", "jensen_shannon"),
)
DILUTION = ("sink_mass", "feature_mass", "lost_mass", "null_divergence", "entropy", "similarity")
CURVE = ("sink_mass", "null_divergence", "similarity", "entropy")

Pairs = tuple[tuple[int, int], ...]
"""(unit, value x scale) by |value|, largest first."""


@dataclass(frozen=True)
class AlsoView:
    """One of the requested methods beyond those that every explanation has."""

    method: str
    """The name of its maps and sources in the folder."""
    name: str
    source: Text
    signed: bool
    attention: bool
    """Whether its values are shares of its row, including start mark and template."""
    refused: Text
    """Why it is not defined for the model; empty if it is."""


@dataclass(frozen=True)
class Ranked:
    """The top sources of a unit by one of those methods."""

    pairs: tuple[tuple[int, float], ...]
    """(unit, value) by |value|, largest first; for attention, without start mark and template."""
    total: float
    """Sum of |value| over all units; for attention, without start mark and template."""


@dataclass(frozen=True)
class TracedShare:
    """A part of the prompt and its shares of a unit, by the number of the part in the trace."""

    part: int
    share: int
    """After the answer's own words are followed back, in thousandths."""
    direct: int
    """Of the unit's own contributions, in thousandths."""
    path: tuple[int, ...]
    """The parts on the path that carries the most, from this one on."""


@dataclass(frozen=True)
class Unit:
    """One word, token or sentence of the text."""

    text: Text
    label: Text
    role: str
    status: str
    """For a generated unit, the status of its tokens together (`word_status`); empty for the rest."""
    start: int
    """Index of its first token."""


@dataclass(frozen=True)
class Turn:
    """A run of units [first, end) with one role."""

    role: str
    name: str
    first: int
    end: int


@dataclass(frozen=True)
class TargetView:
    """One generated unit, its figures and its sources."""

    unit: int
    status: str
    reason: str
    """Of the token `judged`."""
    judged: Text
    """The token whose status the unit carries; the agreement figures are that token's too."""
    diluted: bool
    """Whether plain rollout cannot be read for one of its tokens."""
    attention: str
    """Whether plain rollout can be read for all its tokens, and the reason if not; both empty before rule 4."""
    attention_reason: str
    converged: bool
    """Whether integrated gradients are accurate enough for all its tokens."""
    contrast: Contrast | None
    """The contrast of the token that has a foil, if any."""
    joined: int
    """Tokens in the unit. Log-probs, F, gaps and tolerances are sums over them; rollout figures are means."""
    logprob: float
    recorded: float | None
    """The sum of the log-probs recorded while generating; None if the answer was supplied."""
    rank: int
    """The highest of its tokens' ranks."""
    gap: float
    local_error: float
    tolerance: float
    nodes: int
    f_input: float
    f_baseline: float
    spearman: float | None
    spearman_p: float | None
    recency_p: float | None
    adjusted_p: float | None
    kendall: float | None
    top_k: int
    top_k_overlap: float | None
    rank_biased_overlap: float | None
    jensen_shannon: float | None
    variant_spearman: float | None
    variant_p: float | None
    """Corrected, as `adjusted_p` is."""
    referee: RefereeView | None
    sink_mass: float | None
    """This and the next five are None if attention rollout is refused."""
    feature_mass: float | None
    lost_mass: float | None
    null_divergence: float | None
    similarity: float | None
    entropy: float | None
    curve: Mapping[str, tuple[int, ...]]
    """Figures of the rollout after the top 1, 2, ... layers, by name, in whole thousandths; empty without layers."""
    deletion_error: float | None
    """Of the deletion path; None if it is refused, and before rule 4. This and the next are sums."""
    deletion_tolerance: float | None
    deletion_converged: bool
    floor: float | None
    """By how much the score itself jumps between almost equal inputs (nats); None if it does not."""
    came_from: Sentence
    """The part of the prompt whose removal costs the most; empty if none does, or nothing was measured."""
    traced: tuple[TracedShare, ...]
    """The first sources in the prompt; empty in explanations of earlier versions."""
    effects: tuple[Effect, ...]
    """Measured, by |value|; empty if nothing was removed, and before rule 4."""
    deletion: Pairs
    """The contributions along the deletion path."""
    deletion_total: float
    deletion_structure: float
    gradients: Pairs
    gradients_total: float
    """Sum of |value| over all units, in nats."""
    gradients_structure: float
    """The part of it on start mark and template."""
    rollout: Pairs
    """Without start mark and template, which are in `rollout_structure`."""
    rollout_content: float
    """Share of the row on all units except start mark and template."""
    rollout_structure: Pairs
    variant: Pairs
    """Of the rollout variant; its rows are scaled to sum 1 first."""
    variant_content: float
    variant_structure: Pairs
    removal: Pairs
    """(part of the input, drop of the log-prob when it is removed); empty if nothing was removed."""
    removal_total: float
    """Sum of |drop| over all parts, in nats."""
    also: tuple[Ranked, ...]
    """One per method, in the order of `build_also`."""

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)


@dataclass(frozen=True)
class Level:
    """The complete text at one granularity."""

    units: tuple[Unit, ...]
    turns: tuple[Turn, ...]
    targets: tuple[TargetView, ...]
    parts: tuple[tuple[int, int], ...]
    """For each part of the input that was removed, the units [first, end) that it touches."""
    measured: tuple[tuple[tuple[int, int], ...], ...]
    """For each measured part of the text, the units [first, end) that its ranges touch."""
    focus: tuple[tuple[int, float], ...]
    """(unit, value) of what the page opens on, strongest first."""


def build_also(explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> tuple[AlsoView, ...]:
    """The methods beyond those that every explanation has."""
    found = [(stored_name(method), explanation["scores"][method]) for method in other_methods(explanation)]
    return tuple(
        AlsoView(
            method=name,
            name=method_name(name),
            source=visible(said["source"]),
            signed=said["signed"],
            attention=f"{name}.null" in maps,
            refused=visible(said["refused"] or ""),
        )
        for name, said in found
    )


def build_level(
    explanation: Mapping[str, Any], maps: Mapping[str, np.ndarray], *, groups: Sequence[tuple[int, int]]
) -> Level:
    """Join tokens to the units of `groups` (half-open, covering the sequence).

    Attributions of log-probs are summed over sources and over the targets of one unit. Rollout rows are summed over
    sources and averaged over the targets of one unit.
    """
    tokens, targets = explanation["tokens"], explanation["targets"]
    first = explanation["generation"]["prompt_len"]
    starts = np.array([a for a, _ in groups])
    also = [(each, _joined(maps, each, starts)) for each in build_also(explanation, maps)]
    gradients = np.add.reduceat(maps["integrated_gradients"].astype(float), starts, axis=1)
    none = np.zeros_like(maps["integrated_gradients"])  # if a method was refused
    deletion = np.add.reduceat(maps.get("deletion_path", none).astype(float), starts, axis=1)
    rollout = np.add.reduceat(maps.get("rollout", none).astype(float), starts, axis=1)
    variant = np.add.reduceat(_scaled(maps.get("rollout_variant", none).astype(float)), starts, axis=1)
    parts, effects = build_removal(explanation), build_effects(explanation)
    removal = maps.get("leave_one_out", np.zeros((len(targets), 0))).astype(float)
    placed = by_place(target["tokens"] for target in targets)
    rows = [inside(placed, max(a, first), b) if b > first else [] for a, b in groups]
    owned = [[targets[row] for row in own] for own in rows]
    units = tuple(_unit(tokens[a:b], own) for (a, b), own in zip(groups, owned, strict=True))
    structure = np.array([unit.role in STRUCTURE for unit in units])
    built = []
    for number, own in enumerate(owned):
        if own:
            which = rows[number]
            sources = {
                "came_from": _came_from(effects, which, own, first),
                "traced": _traced(explanation, groups[number], own),
                "effects": effects.on(which)[:TOP] if effects else (),
                **_signed("deletion", deletion[which].sum(axis=0), structure),
                **_signed("gradients", gradients[which].sum(axis=0), structure),
                **_shares("rollout", rollout[which].mean(axis=0), structure),
                **_shares("variant", variant[which].mean(axis=0), structure),
                "removal": _top(removal[which].sum(axis=0), scale=GRADIENT_SCALE, limit=TOP),
                "removal_total": float(np.abs(removal[which].sum(axis=0)).sum()),
                "also": tuple(_ranked(each, joined[which], structure) for each, joined in also),
            }
            figures = _figures(own, units[number].status, explanation["computed"], parts)
            built.append(TargetView(unit=number, **figures, **sources))
    measured = tuple(covered(part.ranges, groups) for part in effects.parts) if effects else ()
    return Level(
        units=units,
        turns=_turns(units, explanation.get("documents") or ()),
        targets=tuple(built),
        parts=covered(parts.ranges if parts else (), groups),
        measured=measured,
        focus=focus_units(explanation, maps, groups),
    )


def _came_from(effects: Effects | None, rows: Sequence[int], own: Sequence[Mapping[str, Any]], first: int) -> Sentence:
    if effects is None:
        return ()
    contrast = build_contrast(own) is not None
    before = float(own[0]["f_input"]) if contrast else sum(target["replayed_logprob"] for target in own)
    return came_from(effects, rows, before=before, prompt_len=first, contrast=contrast)


def _traced(
    explanation: Mapping[str, Any], tokens: tuple[int, int], own: Sequence[Mapping[str, Any]]
) -> tuple[TracedShare, ...]:
    """Those of a single target, or of the passage that is this unit."""
    if explanation["trace"] is None:
        return ()
    passages = (one["traced"] for one in explanation["trace"]["passages"] if tuple(one["tokens"]) == tuple(tokens))
    found = own[0]["traced"] if len(own) == 1 else next(passages, [])
    return tuple(
        TracedShare(
            part=source["unit"],
            share=round(1000 * source["share"]),
            direct=round(1000 * source["direct"]),
            path=tuple(step["unit"] for step in source["path"]),
        )
        for source in found[:TRACED]
    )


def joined_groups(
    groups: Sequence[tuple[int, int]], targets: Sequence[Mapping[str, Any]], *, outer: bool = False
) -> list[tuple[int, int]]:
    """The groups, those that one target spans joined: the smallest targets, or with `outer` the largest."""
    ranges = sorted({(target["tokens"][0], target["tokens"][1]) for target in targets})
    chosen = [
        one
        for one in ranges
        if not any(
            other != one
            and (other[0] <= one[0] and one[1] <= other[1] if outer else one[0] <= other[0] and other[1] <= one[1])
            for other in ranges
        )
    ]
    found: list[tuple[int, int]] = []
    for a, b in groups:
        joins = found and any(start < found[-1][1] < end and a < end for start, end in chosen)
        found[len(found) - bool(joins) :] = [(found[-1][0], b) if joins else (a, b)]
    return found


def _unit(tokens: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> Unit:
    text = "".join(token["text"] for token in tokens)
    return Unit(
        text=visible(text) or label(text),
        label=label(text),
        role=tokens[-1]["role"],
        status=str(word_status(own)) if own else "",
        start=tokens[0]["index"],
    )


def _turns(units: Sequence[Unit], documents: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """Runs of one role. A document is numbered, and its text, which follows its title, does not repeat the name."""
    ranges = [each["tokens"] for each in documents if each["kind"] == "document"]
    turns: list[Turn] = []
    for i, unit in enumerate(units):
        name = ROLE_NAMES[Role(unit.role)]
        if unit.role == Role.DOCUMENT:
            name += "".join(f" {k}" for k, (first, end) in enumerate(ranges, start=1) if first <= unit.start < end)
        if turns and turns[-1].name == name:
            turns[-1] = Turn(unit.role, name, turns[-1].first, i + 1)
        else:
            turns.append(Turn(unit.role, name, i, i + 1))
    named: list[Turn] = []
    last = ""
    for turn in turns:
        again = ranges and turn.role == Role.DOCUMENT and turn.name == last
        last = last if turn.role in STRUCTURE else turn.name
        named.append(replace(turn, name="") if again else turn)
    return tuple(named)


def _figures(
    own: Sequence[Mapping[str, Any]], status: str, settings: Mapping[str, Any], removal: RemovalView | None
) -> dict[str, Any]:
    """One unit's numbers: sums, means of shares, and the agreement of the first token that has its status."""
    judged = next(target for target in own if target["status"] == status)
    deletion = [target["deletion"] for target in own if target["deletion"] is not None]
    verdicts = [target["verdict"] for target in own if target["verdict"] is not None]
    attention = max(verdicts, key=lambda one: list(AttentionStatus).index(one["attention"]), default=None)
    recorded = [target["logprob"] for target in own if target["logprob"] is not None]
    sums = {
        name: round(sum(target[name] for target in own), 5)
        for name in ("gap", "local_error", "tolerance", "nodes", "f_input", "f_baseline")
    }
    return {
        "status": status,
        "reason": plain(visible(judged["reason"])),
        "judged": label(judged["text"]),
        "diluted": any(is_diluted(target, settings) for target in own),
        "attention": attention["attention"] if attention else "",
        "attention_reason": plain(visible(attention["attention_reason"])) if attention else "",
        "converged": all(target["converged"] for target in own),
        "deletion_error": round(sum(one["local_error"] for one in deletion), 5) if deletion else None,
        "deletion_tolerance": round(sum(one["tolerance"] for one in deletion), 5) if deletion else None,
        "deletion_converged": all(one["converged"] for one in deletion),
        "contrast": build_contrast(own),
        "floor": max((target["floor"] for target in own if target.get("floor") is not None), default=None),
        "joined": len(own),
        "logprob": round(sum(target["replayed_logprob"] for target in own), 5),
        "recorded": round(sum(recorded), 5) if len(recorded) == len(own) else None,
        "rank": max(target["rank"] for target in own),
        **{name: _mean([target["rollout"][name] for target in own]) for name in DILUTION},
        **sums,
        **{name: judged["agreement"][name] for name in AGREEMENT},
        "variant_spearman": judged["agreement_variant"]["spearman"],
        "variant_p": judged["agreement_variant"]["adjusted_p"],
        "referee": build_referee(judged["referee"], removal),
        "curve": _curve([target["curve"] for target in own]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _curve(curves: Sequence[Mapping[str, Sequence[float]] | None]) -> dict[str, tuple[int, ...]]:
    """The mean over the tokens of a unit, in thousandths."""
    known = [curve for curve in curves if curve is not None]
    if not known:
        return {}
    means = {name: np.mean([curve[name] for curve in known], axis=0) for name in CURVE}
    return {name: tuple(round(1000 * float(value)) for value in values) for name, values in means.items()}


def _joined(maps: Mapping[str, np.ndarray], method: AlsoView, starts: np.ndarray) -> np.ndarray:
    """A method's map with its tokens joined to units: sums; attention is scaled to rows of sum 1 first."""
    if method.refused:
        return np.zeros((len(maps["integrated_gradients"]), len(starts)))
    rows = maps[method.method].astype(float)
    joined: np.ndarray = np.add.reduceat(_scaled(rows) if method.attention else rows, starts, axis=1)
    return joined


def _ranked(method: AlsoView, rows: np.ndarray, structure: np.ndarray) -> Ranked:
    """Over the targets of one unit, contributions are summed and attention is averaged."""
    values = np.where(structure, 0.0, rows.mean(axis=0)) if method.attention else rows.sum(axis=0)
    pairs = ((int(i), float(f"{values[i]:.{DIGITS}g}")) for i in _largest(values, limit=TOP) if values[i])
    return Ranked(tuple(pairs), float(f"{np.abs(values).sum():.{DIGITS}g}"))


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to sum 1; a row of zeros stays zero. Variants of rollout need not preserve the sum."""
    total = rows.sum(axis=1, keepdims=True)
    scaled: np.ndarray = np.divide(rows, total, out=np.zeros_like(rows), where=total > 0)
    return scaled


def _signed(name: str, values: np.ndarray, structure: np.ndarray) -> dict[str, Any]:
    magnitude = np.abs(values)
    return {
        name: _top(values, scale=GRADIENT_SCALE, limit=TOP),
        f"{name}_total": float(magnitude.sum()),
        f"{name}_structure": float(magnitude[structure].sum()),
    }


def _shares(name: str, row: np.ndarray, structure: np.ndarray) -> dict[str, Any]:
    return {
        name: _top(np.where(structure, 0.0, row), scale=ROLLOUT_SCALE, limit=TOP),
        f"{name}_content": float(row[~structure].sum()),
        f"{name}_structure": _top(np.where(structure, row, 0.0), scale=ROLLOUT_SCALE, limit=TOP_STRUCTURE),
    }


def _top(values: np.ndarray, *, scale: int, limit: int) -> Pairs:
    """The largest |value| as whole numbers, without those that round to 0."""
    pairs = ((int(i), round(float(values[i]) * scale)) for i in _largest(values, limit=limit))
    return tuple(pair for pair in pairs if pair[1])


def _largest(values: np.ndarray, *, limit: int) -> np.ndarray:
    """The indices of the largest |value|, largest first; the earlier one wins a tie."""
    magnitude = np.abs(values)
    least = np.partition(magnitude, -limit)[-limit] if magnitude.size > limit else 0.0
    found = np.flatnonzero(magnitude >= least)
    order: np.ndarray = found[np.argsort(-magnitude[found], kind="stable")][:limit]
    return order
