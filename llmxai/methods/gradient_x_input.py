"""Gradient times input on the embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from captum.attr import InputXGradient
from jaxtyping import Float
from torch import Tensor

from llmxai.methods._embeddings import Forward, score_tokens
from llmxai.methods._registry import method
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


@method("gradient_x_input", needs={"gradients"}, source="Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713")
def gradient_x_input(
    loaded: LoadedModel, generation: Generation, *, targets: Sequence[Target] | None = None, features: str = "content"
) -> TokenScores:
    """<dF/dx_i, x_i> of every token, by Captum: exact where F is linear in the embeddings."""

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        scores: Tensor = InputXGradient(forward).attribute(x.requires_grad_())
        return scores[0].sum(dim=-1)

    return score_tokens(
        loaded,
        generation,
        work,
        method="gradient_x_input",
        targets=targets,
        features=features,
        signed=True,
        settings={},
    )
