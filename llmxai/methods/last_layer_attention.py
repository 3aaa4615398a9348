"""Raw attention of the last layer."""

from __future__ import annotations

from dataclasses import replace

from llmxai.methods._product import roll_out
from llmxai.methods._registry import method
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "last_layer_attention",
    needs={"attentions"},
    source="raw attention, the baseline of Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928",
)
def last_layer_attention(loaded: LoadedModel, generation: Generation) -> Rollout:
    """The last layer's attention from each target's predicting position, mean over heads.

    Rows sum to 1 minus `lost_mass`; the null is uniform attention; there is no curve.
    """
    rollout = roll_out(
        loaded,
        generation,
        name="last_layer_attention",
        residual=0.0,
        last_layers=1,
        settings={"head_fusion": "mean"},
    )
    return replace(rollout, curve=None)
