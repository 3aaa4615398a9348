"""Put an explanation on disk with its report."""

from __future__ import annotations

from pathlib import Path

from llmxai.report import build_view, render_report
from llmxai.store import write_folder
from llmxai.types import Explanation


def save(explanation: Explanation, out: Path | str) -> Path:
    """Write `report.html`, `explanation.json` and `maps.safetensors` into the folder `out`, whole or not at all.

    Raises OutputError where `out` cannot be written or holds files that are not ours.
    """
    return write_folder(explanation, out, render=lambda document, maps: render_report(build_view(document, maps)))
