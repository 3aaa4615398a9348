"""Value-norm-weighted attention, averaged over layers in place of a product."""

from __future__ import annotations

import torch

from llmxai.methods._attention import capture_attention
from llmxai.methods._product import as_it_is, carry, padded, starts, target_positions
from llmxai.methods._registry import method
from llmxai.methods._value_norms import projections_watched, value_norms
from llmxai.models import LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "value_norm_attention",
    needs={"attentions"},
    source="Kobayashi et al. 2020, https://arxiv.org/abs/2004.10102, eq. 4, mean over layers",
)
def value_norm_attention(loaded: LoadedModel, generation: Generation) -> Rollout:
    """Mean over layers of ||sum over heads of attention weight x transformed value||, rows scaled to sum 1.

    No product, so nothing is absorbed by the first token through depth; indirect paths are not followed. The null is
    the mean over layers of uniform attention; there is no curve. Raises UnsupportedModelError where attention does not
    go straight into an output projection.
    """
    positions = target_positions(generation)
    start = starts(loaded, generation)
    with projections_watched() as watch:
        layers = capture_attention(loaded, generation.ids[: positions[-1] + 1], fuse=value_norms(), watch=watch)
    rows = torch.stack([carry(layer, start, as_it_is) for layer in layers]).mean(dim=0)
    null = torch.stack([layer.visible.spread(start) for layer in layers]).mean(dim=0)
    return Rollout(
        method="value_norm_attention",
        rows=padded(rows, generation),
        null_rows=padded(null, generation),
        lost_mass=(1 - rows.sum(dim=1)).clamp(min=0),
        curve=None,
        settings={"head_fusion": "norm of the sum", "layers": len(layers)},
    )
