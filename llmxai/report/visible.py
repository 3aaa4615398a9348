"""Make characters visible that a reader could not see, or that would rearrange what he sees."""

from __future__ import annotations

import unicodedata

NAMES = {
    "\u00ad": "SHY",
    "\u061c": "ALM",
    "\u200b": "ZWSP",
    "\u200c": "ZWNJ",
    "\u200e": "LRM",
    "\u200f": "RLM",
    "\u2028": "LSEP",
    "\u2029": "PSEP",
    "\u202a": "LRE",
    "\u202b": "RLE",
    "\u202c": "PDF",
    "\u202d": "LRO",
    "\u202e": "RLO",
    "\u2060": "WJ",
    "\u2066": "LRI",
    "\u2067": "RLI",
    "\u2068": "FSI",
    "\u2069": "PDI",
    "\ufeff": "BOM",
}
KEPT = frozenset("\t\n\u200d")
"""Tabs and line breaks have a look of their own; the zero-width joiner makes one sign of several."""


def visible(text: str) -> str:
    """`text` with each invisible, control or bidi character replaced by its name in brackets, such as ⟦RLO⟧."""
    return "".join(_sign(character) for character in text)


def label(text: str) -> str:
    """`visible`, and white space too: what a lone token is called in a list or a table."""
    shown = visible(text).replace("\n", "⏎").replace("\t", "⇥")
    return shown.replace(" ", "␣") if not shown.strip(" ") else shown.strip(" ")


def _sign(character: str) -> str:
    if character in NAMES:
        return f"⟦{NAMES[character]}⟧"
    if character in KEPT or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs"):
        return character
    if character == "\0":
        return "⟦NUL⟧"
    return f"⟦U+{ord(character):04X}⟧"
