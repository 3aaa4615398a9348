"""The length of the gradient on the embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from captum.attr import Saliency
from jaxtyping import Float
from torch import Tensor

from llmxai.methods._embeddings import Forward, score_tokens
from llmxai.methods._registry import method
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


@method("saliency", needs={"gradients"}, source="Simonyan et al. 2013, https://arxiv.org/abs/1312.6034")
def saliency(
    loaded: LoadedModel, generation: Generation, *, targets: Sequence[Target] | None = None, features: str = "content"
) -> TokenScores:
    """|dF/dx_i|_2 of every token, the gradient by Captum: how much F moves for a small step, without a sign."""

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        gradients: Tensor = Saliency(forward).attribute(x.requires_grad_(), abs=False)
        length: Tensor = gradients[0].norm(dim=-1)
        return length

    return score_tokens(
        loaded,
        generation,
        work,
        method="saliency",
        targets=targets,
        features=features,
        signed=False,
        settings={"norm": 2},
    )
