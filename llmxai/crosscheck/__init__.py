"""Rollout against integrated gradients: agreement, dilution, the referee, and the status of every generated token."""

from llmxai.crosscheck.agreement import kendall, rank_biased_overlap, rank_test, recency_p, spearman, top_k_overlap
from llmxai.crosscheck.check import cross_check
from llmxai.crosscheck.referee import missed, sources_of, unit_sums, verdicts
from llmxai.crosscheck.status import RULE, Rule, status_alone, status_of, why_diluted
from llmxai.methods.attention.dilution import dilutions, jensen_shannon, normalised_entropy

__all__ = [
    "RULE",
    "Rule",
    "cross_check",
    "dilutions",
    "jensen_shannon",
    "kendall",
    "missed",
    "normalised_entropy",
    "rank_biased_overlap",
    "rank_test",
    "recency_p",
    "sources_of",
    "spearman",
    "status_alone",
    "status_of",
    "top_k_overlap",
    "unit_sums",
    "verdicts",
    "why_diluted",
]
