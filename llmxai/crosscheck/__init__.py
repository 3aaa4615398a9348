"""Rollout against integrated gradients: agreement, dilution, the referee, and the status of every generated token."""

from llmxai.crosscheck.agreement import rank_biased_overlap, rank_test, recency_p
from llmxai.crosscheck.check import cross_check
from llmxai.crosscheck.referee import missed, sources_of, verdicts
from llmxai.crosscheck.verdict import RULE, Rule, attention_verdict, sources_verdict, why_diluted

__all__ = [
    "RULE",
    "Rule",
    "attention_verdict",
    "cross_check",
    "missed",
    "rank_biased_overlap",
    "rank_test",
    "recency_p",
    "sources_of",
    "sources_verdict",
    "verdicts",
    "why_diluted",
]
