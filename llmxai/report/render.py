"""From the view to one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmxai.report.units import GRADIENT_SCALE, ROLLOUT_SCALE, STRUCTURE, Level, Target
from llmxai.report.verdict import STATUS_TEXT
from llmxai.report.view import ReportView
from llmxai.report.visible import Text, plain

UNSAFE_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
DIGITS = 6
"""Significant digits of the figures that the script gets."""


def render_report(view: ReportView) -> str:
    """The page as HTML text: style, script and data inlined, a content security policy that names both by hash."""
    style, script = _static("report.css"), _static("report.js")
    environment = Environment(
        loader=PackageLoader("llmxai.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("report.html.j2").render(
        view=view,
        policy=policy,
        structure=STRUCTURE,
        style=Markup(style),  # our own file
        script=Markup(script),  # our own file
        data=Markup(_json(page_data(view))),  # escaped for script elements
    )


def page_data(view: ReportView) -> dict[str, Any]:
    """What the script gets, as JSON values: units and top sources as whole numbers, never a whole map."""
    return {
        "levels": {name: _level(level) for name, level in view.levels.items()},
        "statuses": {str(s): {"sign": sign, "meaning": text} for s, (sign, text) in STATUS_TEXT.items()},
        "scale": {"gradients": GRADIENT_SCALE, "rollout": ROLLOUT_SCALE},
    }


def _level(level: Level) -> dict[str, Any]:
    return {
        "units": [
            [_text(unit.text), unit.role, unit.status, _text(unit.label), plain(unit.label), unit.start]
            for unit in level.units
        ],
        "turns": [[turn.role, turn.name, turn.first, turn.end] for turn in level.turns],
        "targets": [_target(target) for target in level.targets],
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
