"""Rollout against integrated gradients: agreement, dilution, the referee, and the status of every generated token."""

from llmxai.crosscheck.agreement import rank_biased_overlap, rank_test, recency_p
from llmxai.crosscheck.check import cross_check
from llmxai.crosscheck.referee import missed, sources_of, unit_sums, verdicts
from llmxai.crosscheck.status import RULE, Rule, status_alone, status_of, why_diluted

__all__ = [
    "RULE",
    "Rule",
    "cross_check",
    "missed",
    "rank_biased_overlap",
    "rank_test",
    "recency_p",
    "sources_of",
    "status_alone",
    "status_of",
    "unit_sums",
    "verdicts",
    "why_diluted",
]
