"""Rollout of value-norm-weighted attention."""

from __future__ import annotations

from llmxai.methods._product import roll_out
from llmxai.methods._registry import method
from llmxai.methods._value_norms import projections_watched, value_norms
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "value_norm_rollout",
    needs={"attentions"},
    source="Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102, eq. 4; product as in Abnar & Zuidema 2020",
)
def value_norm_rollout(loaded: LoadedModel, generation: Generation, *, residual: float = 0.5) -> Rollout:
    """Rollout of ||sum over heads of attention weight x transformed value||, each layer's rows scaled to sum 1.

    A sink with small values weighs little. Rows sum to 1. Raises UnsupportedModelError where attention does not go
    straight into an output projection, OptionError for a residual outside [0, 1).
    """
    with projections_watched() as watch:
        return roll_out(
            loaded,
            generation,
            name="value_norm_rollout",
            residual=residual,
            fuse=value_norms(),
            watch=watch,
            settings={"residual": residual, "head_fusion": "norm of the sum"},
        )
