"""Rollout against integrated gradients: agreement, dilution, and the status of every generated token."""

from llmxai.crosscheck.agreement import spearman, top_k_overlap
from llmxai.crosscheck.dilution import jensen_shannon, normalised_entropy
from llmxai.crosscheck.status import RULE, Rule, cross_check

__all__ = [
    "RULE",
    "Rule",
    "cross_check",
    "jensen_shannon",
    "normalised_entropy",
    "spearman",
    "top_k_overlap",
]
