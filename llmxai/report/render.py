"""From a view to one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmxai.report.index import IndexView
from llmxai.report.units import GRADIENT_SCALE, ROLLOUT_SCALE, STRUCTURE, Level, Target
from llmxai.report.verdict import STATUS_TEXT
from llmxai.report.view import ReportView
from llmxai.report.visible import Text, plain

UNSAFE_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
PAGE_SIZE = 50
"""Records on a page of the index."""
COLUMNS = (
    ("id", "record", ""),
    ("prompt", "asked", ""),
    ("answer", "answered", ""),
    *((str(status), f"{sign} {status}", text) for status, (sign, text) in STATUS_TEXT.items()),
    ("gap", "error / allowed", "the largest of its tokens; above 1 a token is unconverged"),
    ("spearman", "Spearman", "median rank agreement of its tokens"),
    ("seconds", "seconds", "time that the explanation took"),
)
DIGITS = 6
"""Significant digits of the figures that the script gets."""


def render_report(view: ReportView) -> str:
    """The page of one explanation as HTML text: style, script and data inlined, both of the former named by hash in
    its content security policy."""
    return _page(
        "report.html.j2",
        style=_static("report.css"),
        script=_static("report.js"),
        data=page_data(view),
        values={"view": view, "structure": STRUCTURE},
    )


def render_index(view: IndexView) -> str:
    """The index of a run as HTML text, made as the page of one explanation is."""
    return _page(
        "index.html.j2",
        style=_static("report.css") + _static("index.css"),
        script=_static("index.js"),
        data=index_data(view),
        values={"view": view, "page_size": PAGE_SIZE, "columns": COLUMNS},
    )


def _page(template: str, *, style: str, script: str, data: object, values: Mapping[str, Any]) -> str:
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            style=Markup(style),  # our own files
            script=Markup(script),
            data=Markup(_json(data)),  # escaped for script elements
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


def index_data(view: IndexView) -> dict[str, Any]:
    """What the script of the index gets: one list a record."""
    return {
        "page": PAGE_SIZE,
        "statuses": [str(status) for status in STATUS_TEXT],
        "rows": [
            [
                _text(row.id),
                row.href,
                _text(row.prompt),
                _text(row.answer),
                row.failed,
                *row.counts,
                *(None if value is None else round(value, 4) for value in (row.gap, row.spearman, row.seconds)),
                _text(row.record),
            ]
            for row in view.rows
        ],
    }


def page_data(view: ReportView) -> dict[str, Any]:
    """What the script gets, as JSON values: units and top sources as whole numbers, never a whole map."""
    return {
        "levels": {name: _level(level) for name, level in view.levels.items()},
        "statuses": {str(s): {"sign": sign, "meaning": text} for s, (sign, text) in STATUS_TEXT.items()},
        "scale": {
            "gradients": GRADIENT_SCALE,
            "rollout": ROLLOUT_SCALE,
            "variant": ROLLOUT_SCALE,
            "removal": GRADIENT_SCALE,
        },
        "refused": _text(view.refused) if view.refused else None,
        "variant": view.variant,
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
    }


def _target(target: Target) -> dict[str, Any]:
    figures = {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in asdict(target).items()
    }
    return {**figures, "judged": _text(target.judged), "probability": float(f"{target.probability:.{DIGITS}g}")}


def _text(text: Text) -> str | list[str | list[str]]:
    """A string, or where there are marks a list of strings and of marks, each mark in a list of its own."""
    if not any(piece.mark for piece in text):
        return "".join(piece.text for piece in text)
    return [[piece.text] if piece.mark else piece.text for piece in text]


def _static(name: str) -> str:
    return files("llmxai.report").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(UNSAFE_IN_SCRIPT)
