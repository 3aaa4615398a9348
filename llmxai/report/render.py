"""From the view to one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmxai.report.view import ReportView

UNSAFE_IN_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


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
        style=Markup(style),  # our own file
        script=Markup(script),  # our own file
        data=Markup(_json(view.data)),  # escaped for script elements
    )


def _static(name: str) -> str:
    return files("llmxai.report").joinpath("static", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(UNSAFE_IN_SCRIPT)
