"""Which explanation is faithful? Questions with known sources, and measures of what removal does."""

from llmxai.evaluation.case import Case, Row, answer_row, locate, make_case, token_positions
from llmxai.evaluation.contenders import method_options, require_method
from llmxai.evaluation.measure import (
    BETTER,
    LEAVE_ONE_OUT,
    METRICS,
    Comparison,
    Competitor,
    EvaluationContext,
    Measured,
    measure,
)
from llmxai.evaluation.suites import SUITES, require_suite, suite_rows
from llmxai.stats import Estimate, estimate, paired_difference

__all__ = [
    "BETTER",
    "LEAVE_ONE_OUT",
    "METRICS",
    "SUITES",
    "Case",
    "Comparison",
    "Competitor",
    "Estimate",
    "EvaluationContext",
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
