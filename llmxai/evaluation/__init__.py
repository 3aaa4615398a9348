"""Which explanation is faithful? Questions with known sources, and measures based on removal."""

from llmxai.evaluation import contexts as contexts  # enters its suites
from llmxai.evaluation import questions as questions
from llmxai.evaluation.case import Case, Row, locate, make_case, token_positions
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
    "estimate",
    "locate",
    "make_case",
    "measure",
    "paired_difference",
    "require_suite",
    "suite_rows",
    "token_positions",
]
