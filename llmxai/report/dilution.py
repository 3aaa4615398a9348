"""Whether plain rollout may be read: a status names only the worst that is wrong with a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmxai.names import Status


def is_diluted(target: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """By the thresholds that the settings name, also where the gradients did not converge and the status says that."""
    if target["status"] == Status.DILUTED:
        return True
    rollout, rule = target["rollout"], settings.get("crosscheck", {})
    if target["status"] != Status.UNCONVERGED or rollout["sink_mass"] is None:
        return False
    return bool(
        rollout["sink_mass"] > rule.get("most_sink", 1.0)
        or rollout["null_divergence"] < rule.get("least_divergence", 0.0)
    )
