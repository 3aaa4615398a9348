"""The report of an explanation inside a notebook."""

from __future__ import annotations

from markupsafe import escape

from llmxai.explanation import Explanation
from llmxai.report import build_view, render_report
from llmxai.store import to_json, to_maps

HEIGHT = 760
"""Pixels; the page scrolls inside of them."""


def inline(explanation: Explanation) -> str:
    """The whole report in a frame of its own: no access to the notebook, its cookies or its kernel, and no network.

    `sandbox="allow-scripts"` without `allow-same-origin` gives the frame an origin that is nobody's; the page inside
    is escaped as one attribute, and keeps its own content security policy.
    """
    page = render_report(build_view(to_json(explanation), to_maps(explanation)))
    return (
        f'<iframe title="llmxai: where the answer came from" sandbox="allow-scripts" referrerpolicy="no-referrer" '
        f'width="100%" height="{HEIGHT}" frameborder="0" srcdoc="{escape(page)}"></iframe>'
    )
