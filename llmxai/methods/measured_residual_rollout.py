"""Rollout whose residual share is measured, layer by layer and token by token, from norms."""

from __future__ import annotations

from llmxai.methods._product import roll_out, target_positions
from llmxai.methods._registry import method
from llmxai.methods._residual import measured_residual
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "measured_residual_rollout",
    needs={"attentions"},
    source="the idea of Kobayashi et al. 2021, https://arxiv.org/abs/2109.07152, without layer norms and value norms",
)
def measured_residual_rollout(loaded: LoadedModel, generation: Generation) -> Rollout:
    """Rollout with r = ||x|| / (||x|| + ||attention||) of each layer and position in place of a fixed share.

    x is the residual stream that goes into the layer, attention what the layer's attention adds to it. The null has
    the same shares. Rows sum to 1 minus `lost_mass`; `settings` gives the mean share of every layer. Raises
    UnsupportedModelError where the layers or their attention cannot be told apart.
    """
    shares = measured_residual(loaded, generation.ids[: target_positions(generation)[-1] + 1])
    return roll_out(
        loaded,
        generation,
        name="measured_residual_rollout",
        residual=shares,
        settings={"residual": [round(float(share.mean()), 4) for share in shares], "head_fusion": "mean"},
    )
