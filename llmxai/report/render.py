"""From a view to one self-contained HTML page; the index of a long run also has data pages."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmxai.report.focus import STEPS, rounded
from llmxai.report.index import IndexRow, IndexView
from llmxai.report.units import GRADIENT_SCALE, ROLLOUT_SCALE, STRUCTURE, Level, TargetView
from llmxai.report.verdict import FINE, STATUS_TEXT, Contrast
from llmxai.report.view import ReportView
from llmxai.report.visible import Text, plain

UNSAFE_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
PAGE_SIZE = 50
"""Records on a page of the index's table."""
DATA = "index-data"
"""The folder of a long index's data pages, next to it."""
DATA_ROWS = 5000
"""Records per data page; the index itself holds the texts of up to this many."""
TEXT_COLUMNS = (
    ("id", "record", ""),
    ("prompt", "asked", ""),
    ("answer", "answered", ""),
    ("sources", "first sources", "what the answer rests on most; the page of the record says how much"),
)
REVIEW_COLUMN = ("review", "review", "what reviewers decided, by the evidence log")
FIGURE_COLUMNS = (
    ("probability", "probability", "of the whole answer, by the model"),
    ("seconds", "seconds", "time that the explanation took"),
)
DIGITS = 6
"""Significant digits of the figures that the script receives."""


def render_report(view: ReportView) -> str:
    """The page of one explanation as HTML text: style, script and data are inlined, and its content security policy
    names style and script by hash."""
    return _page(
        "report.html.j2",
        style=_static("report.css"),
        script=_static("report.js") + _static("review.js"),
        data=_json(page_data(view)),
        values={"view": view, "structure": STRUCTURE, "painted": _painted(view)},
    )


def _painted(view: ReportView) -> dict[int, str]:
    """The classes that colour each word before a word is chosen, by its number; the script paints the same way."""
    pairs = view.levels["words"].focus
    most = max((abs(value) for _, value in pairs), default=1.0)
    return {
        unit: f" source {'pos' if value > 0 else 'neg'} s{max(1, math.ceil(STEPS * abs(value) / most))}"
        for unit, value in pairs
    }


@dataclass(frozen=True)
class LongIndex:
    """The index of a run with too many records for one page."""

    page: str
    """index.html: every record's figures, the texts of the first ones, and the SHA-256 of each data page's data."""
    data: Mapping[str, str]
    """The data pages with the names and texts of the records, by path relative to the index."""


def render_index(view: IndexView) -> str:
    """The index of a run as HTML text, built like the page of one explanation."""
    return _index(view, _texts(view.rows), parts=None)


def render_long_index(view: IndexView, *, size: int = DATA_ROWS) -> LongIndex:
    """The index with a data page for every `size` records.

    From disk, a browser reads no file for a page, and would run a script unchecked. So a data page is itself a page,
    with its data and the one script that its policy names by hash. The index shows it in a sandboxed frame, which sends
    the data as text, and accepts the text only if its SHA-256 is the expected one.
    """
    pages, files = {}, []
    for first in range(0, len(view.rows), size):
        some = view.rows[first : first + size]
        data = _json(_texts(some))
        digest = hashlib.sha256(data.encode()).hexdigest()
        name = f"{DATA}/{first // size + 1:05d}-{digest[:12]}.html"
        pages[name] = _page(
            "data.html.j2",
            style="",
            script=_static("data.js"),
            data=data,
            values={"first": first + 1, "last": first + len(some), "index": "index.html"},
        )
        files.append((name, digest))
    parts = {"size": size, "files": files}
    return LongIndex(_index(view, _texts(view.rows[:PAGE_SIZE]), parts=parts), pages)


def _index(view: IndexView, texts: list[list[Any]], *, parts: Mapping[str, Any] | None) -> str:
    data = {
        "page": PAGE_SIZE,
        "statuses": [str(status) for status in view.statuses],
        "fine": [str(status) for status in FINE],
        "figures": [
            [
                int(row.failed),
                *row.counts,
                *(None if value is None else float(f"{value:.4g}") for value in (row.probability, row.seconds)),
            ]
            for row in view.rows
        ],
        "texts": texts,
        "parts": parts,
        "reviewed": view.reviewed,
    }
    counted = [
        (str(status), f"{STATUS_TEXT[status][0]} {status}", f"tokens: {STATUS_TEXT[status][1]}")
        for status in view.statuses
    ]
    probability, seconds = FIGURE_COLUMNS
    review = (REVIEW_COLUMN,) if view.reviewed else ()
    columns = (*TEXT_COLUMNS, probability, *counted, seconds, *review)
    return _page(
        "index.html.j2",
        style=_static("report.css") + _static("index.css"),
        script=_static("index.js"),
        data=_json(data),
        values={
            "view": view,
            "page_size": PAGE_SIZE,
            "columns": columns,
            "parts": parts,
            "fine": FINE,
            "rounded": rounded,
        },
        frames=parts is not None,
    )


def _texts(rows: Sequence[IndexRow]) -> list[list[Any]]:
    return [
        [_text(row.id), row.href, *map(_text, (row.prompt, row.answer, row.record, row.sources, row.review))]
        for row in rows
    ]


def _page(template: str, *, style: str, script: str, data: str, values: Mapping[str, Any], frames: bool = False) -> str:
    """`data`: JSON from `_json`. `frames`: whether the page may show other pages of its folder in frames."""
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            *(["frame-src 'self'"] if frames else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(style),  # our own files
            script=Markup(script),
            data=Markup(data),  # escaped for script elements
            **values,
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("llmxai.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_data(view: ReportView) -> dict[str, Any]:
    """The data for the script as JSON values: units and top sources as whole numbers, never a complete map."""
    return {
        "levels": {name: _level(level) for name, level in view.levels.items()},
        "statuses": {str(s): {"sign": sign, "meaning": text} for s, (sign, text) in STATUS_TEXT.items()},
        "fine": [str(status) for status in FINE],
        "measured": view.verdict.measured,
        "steps": STEPS,
        "ends": bool(view.ends),
        "focus": {
            "method": view.summary.focus.method,
            "contrast": view.summary.focus.contrast is not None,
        },
        "review": {"record": view.reviewed.record, "explanation_sha256": view.reviewed.explanation, "page": view.title},
        "effects": view.effects
        and {
            "parts": [[_text(part.text), plain(part.text), part.note] for part in view.effects.parts],
            "operator": view.effects.operator,
            "confidence": view.effects.confidence,
        },
        "trace": view.trace and [[_text(text), int(own), int(shared)] for text, own, shared in view.trace.parts],
        "deletion": view.deletion,
        "deletion_refused": _text(view.deletion_refused) if view.deletion_refused else None,
        "scale": {
            "effects": 1,
            "deletion": GRADIENT_SCALE,
            "gradients": GRADIENT_SCALE,
            "rollout": ROLLOUT_SCALE,
            "variant": ROLLOUT_SCALE,
            "removal": GRADIENT_SCALE,
        },
        "refused": _text(view.refused) if view.refused else None,
        "variant": view.variant,
        "also": [
            {
                "name": method.name,
                "source": _text(method.source),
                "signed": method.signed,
                "attention": method.attention,
                "refused": _text(method.refused) if method.refused else None,
            }
            for method in view.also
        ],
        "contrast": Contrast.SENTENCE,
        "removal": view.removal
        and {
            "parts": [[_text(part), plain(part)] for part in view.removal.parts],
            "operator": view.removal.operator,
            "masks": view.removal.masks,
        },
    }


def _level(level: Level) -> dict[str, Any]:
    return {
        "units": [
            [_text(unit.text), unit.role, unit.status, _text(unit.label), plain(unit.label), unit.start]
            for unit in level.units
        ],
        "turns": [[turn.role, turn.name, turn.first, turn.end] for turn in level.turns],
        "targets": [_target(target) for target in level.targets],
        "parts": level.parts,
        "measured": level.measured,
        "focus": level.focus,
    }


def _target(target: TargetView) -> dict[str, Any]:
    figures = {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in asdict(target).items()
    }
    contrast = target.contrast and [_text(target.contrast.token), _text(target.contrast.foil)]
    told: dict[str, Any] = {"judged": _text(target.judged), "contrast": contrast}
    told["came_from"] = [part if isinstance(part, str) else [_text(part)] for part in target.came_from]
    told["traced"] = [[one.part, one.share, one.direct, one.path] for one in target.traced]
    told["effects"] = [
        [one.part, one.value, one.low, one.high, None if one.without is None else float(f"{one.without:.{DIGITS}g}")]
        for one in target.effects
    ]
    return {**figures, **told, "probability": float(f"{target.probability:.{DIGITS}g}")}


def _text(text: Text) -> str | list[str | list[str]]:
    """A string or, if there are marks, a list of strings and marks, each mark in its own list."""
    if not any(piece.mark for piece in text):
        return "".join(piece.text for piece in text)
    return [[piece.text] if piece.mark else piece.text for piece in text]


def page_style() -> str:
    """The style sheet that all pages share."""
    return _static("report.css")


def _static(name: str) -> str:
    return files("llmxai.report").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    """JSON that is safe inside a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(UNSAFE_IN_SCRIPT)
