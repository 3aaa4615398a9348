"""Rollout with the minimum over heads in place of their mean."""

from __future__ import annotations

from llmxai.methods._product import FUSIONS, roll_out
from llmxai.methods._registry import method
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "min_head_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928, heads fused by their minimum",
)
def min_head_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Rollout of the minimum over heads of each attention weight, rows scaled to the sums that the mean would have.

    Rows sum to 1 minus `lost_mass`. Raises OptionError for a residual outside [0, 1).
    """
    return roll_out(
        loaded,
        generation,
        name="min_head_rollout",
        residual=residual,
        fuse=FUSIONS["min"],
        settings={"residual": residual, "head_fusion": "min"},
    )
