"""Documents, turns and their pieces as plain JSON values: what they do to the answer, and where their text is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmxai.names import Unit
from llmxai.types import ContextEffects, Effects, Generation, Part, Piece

OWN_MEMORY = 0.02
"""Nats of divergence without the context under which a token is said not to depend on it. By Pinsker's inequality, the
probability of any set of next tokens then changes by at most sqrt(0.02 / 2) = 10 percentage points."""
DIGITS = 6
LISTS = ("f_without", "f_deleted", "f_masked", "divergence_all", "effect", "low", "high")
"""Fields of `ContextEffects` with one number for each piece, mask, token or root."""
PLAIN = ("how", "roots", "f_full", "forwards", "recomputed", "f_rest")


def context_json(context: ContextEffects | None) -> dict[str, Any] | None:
    """All fields; NaN as null."""
    if context is None:
        return None
    return {
        **{name: getattr(context, name) for name in PLAIN},
        "pieces": [{"kind": one.kind, "tokens": list(one.tokens), "part": one.part} for one in context.pieces],
        "context": list(context.context),
        "rest": list(context.rest),
        **{name: _numbers(getattr(context, name)) for name in LISTS},
        "divergence": [_numbers(row) for row in context.divergence],
        "own_memory": {"below": OWN_MEMORY, "tokens": own_memory(context)},
    }


def own_memory(context: ContextEffects) -> list[int]:
    """The answer's tokens (0-based) that do not depend on the context: from the model's own memory or the template."""
    if not context.context:
        return []
    return torch.nonzero(context.divergence_all < OWN_MEMORY)[:, 0].tolist()


def _numbers(values: torch.Tensor | None) -> list[float | None] | None:
    return None if values is None else [None if x != x else x for x in values.tolist()]


def context_from(told: Mapping[str, Any] | None) -> ContextEffects | None:
    """The effects in `context` of a parsed explanation.json; None in older folders, and where nothing was measured."""
    if told is None:
        return None

    def numbers(values: Sequence[float | None]) -> torch.Tensor:
        return torch.tensor([float("nan") if x is None else float(x) for x in values], dtype=torch.float64)

    lists: dict[str, Any] = {name: None if told[name] is None else numbers(told[name]) for name in LISTS}
    return ContextEffects(
        **{name: told[name] for name in PLAIN},
        pieces=tuple(Piece(one["kind"], (one["tokens"][0], one["tokens"][1]), one["part"]) for one in told["pieces"]),
        context=tuple(told["context"]),
        rest=tuple(told["rest"]),
        divergence=torch.stack([numbers(row) for row in told["divergence"]]),
        **lists,
    )


def documents_json(generation: Generation, effects: Effects | None) -> list[dict[str, Any]]:
    """The documents, turns and tools, in the order of the prompt; empty where they were not measured."""
    context = None if effects is None else effects.context
    if context is None:
        return []
    effect, low, high = context.estimates
    total = float(effect.abs().sum())
    return [
        {
            "title": title_of(generation, piece),
            "kind": piece.kind,
            "share": float(effect[i].abs()) / total if total else 0.0,
            "effect": round(float(effect[i]), DIGITS),
            "interval": [round(float(low[i]), DIGITS), round(float(high[i]), DIGITS)],
            "alone": round(float(context.drop[i]), DIGITS),
            "deleted": context.how != "hide" or not bool(context.f_deleted[i].isnan()),
            "divergence": round(float(context.divergence[:, i].max()), DIGITS),
            "tokens": list(piece.tokens),
            "part": piece.part,
        }
        for i, piece in enumerate(context.pieces[: context.roots])
    ]


def title_of(generation: Generation, piece: Piece) -> str:
    """What a reader calls it: the title of a document, the number and role of a turn."""
    if piece.part < 0:
        return piece.kind
    return name_of(generation.parts[piece.part])


def name_of(part: Part) -> str:
    """A document's title; of other parts their kind, their number and, if they have one, their role or name."""
    if part.kind == "document":
        return part.title
    return part.kind if part.kind == "prompt" else f"{part.kind} {part.source + 1} ({part.title})"


def spans_json(generation: Generation, effects: Effects | None) -> list[dict[str, Any]]:
    """What was removed, in characters of the document or turn that it belongs to, largest effect first.

    White space alone is left out. `effect` is how much the log-prob of the whole answer (nats) falls without it alone.
    """
    if effects is None:
        return []
    found: dict[tuple[Unit, int], tuple[str, float]] = {}
    if (context := effects.context) is not None:
        for piece, drop in zip(context.pieces, context.drop.tolist(), strict=True):
            if piece.part >= 0:
                found[(piece.tokens, piece.part)] = piece.kind, drop
    known = {tokens for tokens, _ in found}
    kind = str(effects.settings.get("kind", "word"))
    drops = [] if effects.answer_drop is None else effects.answer_drop.tolist()
    for unit, drop in zip(effects.units, drops, strict=bool(drops)):
        if unit not in known:
            for number, part in enumerate(generation.parts):
                if part.characters(*unit) is not None:
                    found[(unit, number)] = kind, drop
    rows = [_span(generation.parts[part], tokens, kind, drop) for (tokens, part), (kind, drop) in found.items()]
    return sorted((row for row in rows if row is not None), key=lambda row: -float(row["effect"]))


def _span(part: Part, tokens: Unit, kind: str, drop: float) -> dict[str, Any] | None:
    place = part.characters(*tokens)
    if place is None:
        return None
    start, end = place
    text = part.text[start:end]
    if not text.strip():
        return None
    start += len(text) - len(text.lstrip())
    return {
        "document": name_of(part),
        "start": start,
        "end": start + len(text.strip()),
        "text": text.strip(),
        "kind": kind,
        "effect": round(drop, DIGITS),
        "tokens": list(tokens),
    }
