"""Rollout with the first token's column taken out of every layer."""

from __future__ import annotations

from llmxai.methods._product import roll_out
from llmxai.methods._registry import method
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "sink_free_rollout",
    needs={"attentions"},
    source="the first-token sink: Xiao et al. 2023, https://arxiv.org/abs/2309.17453; product: Abnar & Zuidema 2020",
)
def sink_free_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Rollout with attention to the first token removed at every layer and each row scaled to sum 1 again.

    The first token itself, which sees nothing else, keeps its own row. The null is uniform over the keys that are
    left. Rows sum to 1. Raises OptionError for a residual outside [0, 1).
    """
    return roll_out(
        loaded,
        generation,
        name="sink_free_rollout",
        residual=residual,
        sink_removed=True,
        settings={"residual": residual, "head_fusion": "mean"},
    )
