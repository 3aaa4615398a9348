"""The HTML report: plain data first, then the page."""

from llmxai.report.render import render_report
from llmxai.report.view import ReportView, build_view

__all__ = ["ReportView", "build_view", "render_report"]
