"""Make characters visible that a reader could not see, or that would rearrange the visible ones.

A text becomes pieces: plain stretches, and marks (`RLO`, `NUL`, `¶`) that the page draws in a small box, so a mark
cannot be confused with the same letters written by the model.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = {
    "\0": "NUL",
    "\x07": "BEL",
    "\x08": "BS",
    "\r": "CR",
    "\x1b": "ESC",
    "\x7f": "DEL",
    "\xa0": "NBSP",
    "\u00ad": "SHY",
    "\u034f": "CGJ",
    "\u061c": "ALM",
    "\u115f": "FILLER",
    "\u1160": "FILLER",
    "\u180e": "MVS",
    "\u200b": "ZWSP",
    "\u200c": "ZWNJ",
    "\u200d": "ZWJ",
    "\u200e": "LRM",
    "\u200f": "RLM",
    "\u2028": "LSEP",
    "\u2029": "PSEP",
    "\u202a": "LRE",
    "\u202b": "RLE",
    "\u202c": "PDF",
    "\u202d": "LRO",
    "\u202e": "RLO",
    "\u202f": "NNBSP",
    "\u2060": "WJ",
    "\u2066": "LRI",
    "\u2067": "RLI",
    "\u2068": "FSI",
    "\u2069": "PDI",
    "\u2800": "BLANK",
    "\u3164": "FILLER",
    "\ufeff": "BOM",
    "\uffa0": "FILLER",
}
LINE_BREAK, TAB = "¶", "⇥"
JOINER = "\u200d"
MOST_TIMES = 1e6
"""A larger ratio is said without its number."""
SIGN_PARTS = ("So", "Sk")
"""Categories of emoji and their skin tones; a joiner between two of them combines them into one sign."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text, or the name of one invisible character."""

    text: str
    mark: bool = False


Text = tuple[Piece, ...]


def visible(text: str) -> Text:
    """`text` with every invisible, control or bidi character as a mark; a line break is a mark and still breaks."""
    if text and text.isprintable() and NAMES.keys().isdisjoint(text):
        return (Piece(text),)
    pieces: list[Piece] = []
    for i, character in enumerate(text):
        name = LINE_BREAK if character == "\n" else _mark(text, i)
        if name:
            pieces.append(Piece(name, mark=True))
        if not name or character == "\n":
            if pieces and not pieces[-1].mark:
                pieces[-1] = Piece(pieces[-1].text + character)
            else:
                pieces.append(Piece(character))
    return tuple(pieces)


def label(text: str) -> Text:
    """The label of a word or token in a list or a table: on one line, and never empty."""
    kept = text.strip(" ")
    if not kept:
        return (Piece(_blank(len(text)), mark=True),)
    lined = ((piece.text.replace("\n", ""), piece.mark) for piece in visible(kept.replace("\t", TAB)))
    return tuple(Piece(text, mark) for text, mark in lined if text)


def _blank(spaces: int) -> str:
    return ("part of a character", "space")[spaces] if spaces < 2 else f"{spaces} spaces"


def plain(text: Text) -> str:
    """Pieces as a plain string, marks in brackets: for page titles and screen readers."""
    return "".join(f"[{piece.text}]" if piece.mark else piece.text for piece in text)


def shorten(text: str, *, limit: int) -> str:
    """At most `limit` characters; the last is an ellipsis if something was cut."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def percent(value: float) -> str:
    """A share as a percentage, with more digits if it is small."""
    if value and value < 0.0005:
        return "under 0.001%" if value < 0.00001 else f"{100 * value:.3f}%"
    return f"{100 * value:.1f}%"


def nats(value: float) -> str:
    """A signed number of nats with a real minus sign."""
    return f"{value:+.2f}".replace("-", "−")


def _mark(text: str, i: int) -> str | None:
    """The name of character `i`, or None if it is visible."""
    character = text[i]
    if character == JOINER and _joins_signs(text, i):
        return None
    if character in NAMES:
        return NAMES[character]
    if character == "\t" or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs"):
        return None
    return f"U+{ord(character):04X}"


def _joins_signs(text: str, i: int) -> bool:
    before = text[:i].rstrip("\ufe0f")[-1:]
    after = text[i + 1 : i + 2]
    return all(c and (unicodedata.category(c) in SIGN_PARTS) for c in (before, after))


def characters(tokens: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """One group per token; tokens that are part of one character share a group."""
    groups, start = [], 0
    for i, token in enumerate(tokens):
        if token["text"] or i == len(tokens) - 1:
            groups.append((start, i + 1))
            start = i + 1
    return groups


def times(difference: float, *, what: str = "likely") -> str:
    """A change of a log-probability as a ratio; with "odds", one of the lead over a foil."""
    ratio, likely = math.exp(min(abs(difference), 50.0)), what == "likely"
    if ratio < 1.05:
        return "about as likely" if likely else "odds about the same"
    how = "over a million times" if ratio > MOST_TIMES else f"{counted(ratio)} times"
    if likely:
        return f"{how} {'more' if difference > 0 else 'less'} likely"
    return f"odds {how} {'larger' if difference > 0 else 'smaller'}"


def counted(ratio: float) -> str:
    """`3.4`, `340`, `34,000`."""
    return f"{ratio:.1f}" if ratio < 10 else f"{float(f'{ratio:.2g}'):,.0f}"
