"""Documents, turns and tools as a reader knows them: what each did to the answer, opened to its sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmxai.report.visible import Text, label, nats, percent, plain, shorten, visible

LONGEST = 120
"""Characters of a document's beginning, and of a piece."""
MOST_PIECES = 40
"""Pieces shown of one document."""
UNIT_WORDS = ("word", "token")
"""Kinds too small for the table; the words' own panel has them."""


@dataclass(frozen=True)
class PieceRow:
    """A paragraph, sentence or run of them, and how much the answer falls without it."""

    text: Text
    effect: str
    place: str
    """Its characters in the document."""


@dataclass(frozen=True)
class DocumentRow:
    """A document, turn or tool."""

    title: Text
    kind: str
    share: str
    effect: str
    interval: str
    """Empty where there is none."""
    divergence: str
    begins: Text
    """How its text begins."""
    pieces: tuple[PieceRow, ...]


@dataclass(frozen=True)
class ContextView:
    """The table, and sentences on how it was measured."""

    rows: tuple[DocumentRow, ...]
    how: str
    rest: str
    """What is known about the pieces that were not split; empty if all were."""
    memory: Text
    """Which words of the answer do not depend on the context; empty without a context."""


def build_context(explanation: Mapping[str, Any]) -> ContextView | None:
    """From a parsed explanation.json; None where documents and turns were not measured."""
    context, documents = explanation.get("context"), explanation.get("documents")
    if not context or not documents:
        return None
    order = sorted(range(len(documents)), key=lambda i: -abs(documents[i]["effect"]))
    return ContextView(
        rows=tuple(_document(explanation, documents[i]) for i in order),
        how=_how(context),
        rest=_rest(context),
        memory=_memory(explanation, context),
    )


def _document(explanation: Mapping[str, Any], row: Mapping[str, Any]) -> DocumentRow:
    (low, high), (first, last) = row["interval"], row["tokens"]
    parts = explanation["parts"]
    text = parts[row["part"]]["text"] if row["part"] >= 0 else _said(explanation, first, last)
    inside = [
        span
        for span in explanation["spans"]
        if span["document"] == row["title"] and not span["kind"].endswith((*UNIT_WORDS, "words", row["kind"]))
    ]
    return DocumentRow(
        title=visible(row["title"]),
        kind=row["kind"],
        share=percent(row["share"]),
        effect=nats(row["effect"]),
        interval="" if low == high else f"{nats(low)} to {nats(high)}",
        divergence=f"{row['divergence']:.2f}",
        begins=label(shorten(text, limit=LONGEST)),
        pieces=tuple(
            PieceRow(
                text=label(shorten(span["text"], limit=LONGEST)),
                effect=nats(span["effect"]),
                place=f"{span['start']}–{span['end']}",
            )
            for span in inside[:MOST_PIECES]
        ),
    )


def _said(explanation: Mapping[str, Any], first: int, last: int) -> str:
    return "".join(token["text"] for token in explanation["tokens"][first:last])


def _how(context: Mapping[str, Any]) -> str:
    passes = f"{context['forwards']} passes through the model, {context['recomputed']:,} tokens"
    if context["how"] != "hide":
        return f"Each was taken away alone and in random halves of the text ({passes})."
    deleted = sum(value is not None for value in context["f_deleted"])
    return (
        f"The text is long, so each was hidden from the last turn and the answer, while the rest of it kept what it "
        f"had read of it; the {deleted} strongest were also taken out, and the text behind them read again ({passes})."
    )


def _rest(context: Mapping[str, Any]) -> str:
    if not (rest := context["rest"]):
        return ""
    full = context["f_full"]
    falls = [
        full - (context["f_without"][i] if context["f_deleted"][i] is None else context["f_deleted"][i]) for i in rest
    ]
    said = (
        f"{len(rest)} parts were not split: none of them alone changes the log-probability of the answer by more "
        f"than {max(map(abs, falls)):.2f} nats, nor does any part of them that no other part counters"
    )
    joint = "" if context["f_rest"] is None else f"; all of them together change it by {nats(full - context['f_rest'])}"
    return f"{said}{joint}."


def _memory(explanation: Mapping[str, Any], context: Mapping[str, Any]) -> Text:
    if not context["context"]:
        return ()
    first, tokens = explanation["generation"]["prompt_len"], explanation["tokens"]
    own = [t for t in context["own_memory"]["tokens"] if tokens[first + t]["text"].strip()]
    below = context["own_memory"]["below"]
    if not own:
        return visible("Every word of the answer depends on the context.")
    texts = _runs([(t, tokens[first + t]["text"]) for t in own])
    return visible(
        f"From the model’s own memory, its earlier words or the template, since the context changes its prediction by "
        f"less than {below:g} nats there: {', '.join(f'“{plain(label(text))}”' for text in texts)}."
    )


def _runs(pieces: Sequence[tuple[int, str]]) -> list[str]:
    """Texts of neighbouring tokens joined."""
    found: list[tuple[int, str]] = []
    for t, text in pieces:
        if found and found[-1][0] == t - 1:
            found[-1] = (t, found[-1][1] + text)
        else:
            found.append((t, text))
    return [text.strip() for _, text in found]
