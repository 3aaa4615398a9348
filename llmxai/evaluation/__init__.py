"""Which explanation is faithful? Questions with known sources, and measures of what removal does."""

from llmxai.evaluation.case import Case, answer_row, make_case, token_positions
from llmxai.evaluation.contenders import method_options, require_method
from llmxai.evaluation.intervals import Estimate, estimate, paired_difference
from llmxai.evaluation.measure import BETTER, LEAVE_ONE_OUT, METRICS, Bench, Comparison, Competitor, Measured, measure
from llmxai.evaluation.rows import Row, locate
from llmxai.evaluation.suites import SUITES, require_suite, suite_rows

__all__ = [
    "BETTER",
    "LEAVE_ONE_OUT",
    "METRICS",
    "SUITES",
    "Bench",
    "Case",
    "Comparison",
    "Competitor",
    "Estimate",
    "Measured",
    "Row",
    "answer_row",
    "estimate",
    "locate",
    "make_case",
    "measure",
    "method_options",
    "paired_difference",
    "require_method",
    "require_suite",
    "suite_rows",
    "token_positions",
]
