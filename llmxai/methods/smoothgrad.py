"""SmoothGrad: the gradient's length, averaged over noisy embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, randn_like

from llmxai.errors import OptionError
from llmxai.methods._embeddings import Forward, gradient, score_tokens
from llmxai.methods._registry import method
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


@method("smoothgrad", needs={"gradients"}, source="Smilkov et al. 2017, https://arxiv.org/abs/1706.03825")
def smoothgrad(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    samples: int = 8,
    noise: float = 0.1,
    seed: int = 0,
) -> TokenScores:
    """Mean over `samples` of |dF/dx_i|_2 at embeddings with Gaussian noise, `noise` times the embeddings' own spread.

    The length is taken before the mean; Captum's NoiseTunnel averages the signed gradients, which cancel.
    """
    if samples < 1 or noise < 0:
        raise OptionError(f"smoothgrad: samples is {samples} and noise {noise}; expected at least 1 and 0.")

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        total = x.new_zeros(x.shape[1])
        for _ in range(samples):
            total = total + gradient(forward, x + noise * x.std() * randn_like(x))[0].norm(dim=-1)
        return total / samples

    return score_tokens(
        loaded,
        generation,
        work,
        method="smoothgrad",
        targets=targets,
        features=features,
        signed=False,
        settings={"samples": samples, "noise": noise, "seed": seed},
        seed=seed,
    )
