"""Attention rollout, only the rows that are wanted.

R = product over layers, last layer first, of (r I + (1 - r) A_l) with A_l the head-mean attention (Abnar & Zuidema
2020, https://arxiv.org/abs/2005.00928). The row of a target is that of its predicting position, so the product is
carried from the top layer down as [target, seq] and no layer's map is ever whole.
"""

from __future__ import annotations

from llmxai.errors import OptionError
from llmxai.methods._product import FUSIONS, require_share, roll_out
from llmxai.methods._registry import method
from llmxai.methods._two_sides import roll_out_two_sides
from llmxai.models import Kind, LoadedModel
from llmxai.types import Generation, Rollout


@method(
    "attention_rollout",
    needs={"attentions"},
    source="Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928",
)
def attention_rollout(
    loaded: LoadedModel, generation: Generation, *, residual: float = 0.5, head_fusion: str = "mean"
) -> Rollout:
    """Share of attention that reaches every token from each target's predicting position, through all layers.

    `residual` is the share of each layer that stays in place; `head_fusion` is how heads become one map: mean, or max
    or min scaled back to the sums of the mean. The null is the same product with every attention row uniform over
    what its mask allows. Rows sum to 1 minus `lost_mass`. Of an encoder-decoder, the product goes on from the decoder's
    self- and cross-attention, each with its own residual share, through the encoder (`_two_sides`).

    Raises OptionError for a residual outside [0, 1) or an unknown fusion, and UnsupportedModelError for layers without
    softmax attention.
    """
    if head_fusion not in FUSIONS:
        raise OptionError(f"head_fusion {head_fusion!r} is unknown. Known: {', '.join(FUSIONS)}.")
    if loaded.kind is Kind.ENCODER_DECODER:
        require_share(residual)
        return roll_out_two_sides(
            loaded,
            generation,
            name="attention_rollout",
            residual=residual,
            fuse=FUSIONS[head_fusion],
            settings={"residual": residual, "head_fusion": head_fusion},
        )
    return roll_out(
        loaded,
        generation,
        name="attention_rollout",
        residual=residual,
        fuse=FUSIONS[head_fusion],
        settings={"residual": residual, "head_fusion": head_fusion},
    )
