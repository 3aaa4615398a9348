"""The HTML report: plain data first, then the page. Nothing here needs torch or a model."""

from llmxai.report.export import export
from llmxai.report.index import IndexView, build_index
from llmxai.report.rebuild import Rebuilt, home_of, rebuild, write_index, write_page
from llmxai.report.render import LongIndex, page_style, render_index, render_long_index, render_report
from llmxai.report.rows import RunRow, read_rows, summarize, to_columns
from llmxai.report.view import ReportView, build_view

__all__ = [
    "IndexView",
    "LongIndex",
    "Rebuilt",
    "ReportView",
    "RunRow",
    "build_index",
    "build_view",
    "export",
    "home_of",
    "page_style",
    "read_rows",
    "rebuild",
    "render_index",
    "render_long_index",
    "render_report",
    "summarize",
    "to_columns",
    "write_index",
    "write_page",
]
