"""Rollout of the last layers only."""

from __future__ import annotations

from llmxai.methods._product import roll_out
from llmxai.methods._registry import method
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "last_layers_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928, the product cut short",
)
def last_layers_rollout(
    loaded: LoadedModel, generation: Generation, *, last_layers: int = 8, residual: float = 0.5
) -> Rollout:
    """Rollout through the last `last_layers` layers: what lower layers mixed stays where they put it.

    All layers where the model has no more. Rows sum to 1 minus `lost_mass`. Raises OptionError for fewer than one layer
    or a residual outside [0, 1).
    """
    return roll_out(
        loaded,
        generation,
        name="last_layers_rollout",
        residual=residual,
        last_layers=last_layers,
        settings={"residual": residual, "head_fusion": "mean"},
    )
