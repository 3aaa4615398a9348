"""GradientSHAP: gradients at random points between a baseline and the input."""

from __future__ import annotations

from collections.abc import Sequence

from captum.attr import GradientShap
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._embeddings import Forward, score_tokens
from llmxai.methods._path import make_path
from llmxai.methods._registry import method
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


@method("gradient_shap", needs={"gradients"}, source="Lundberg & Lee 2017, https://arxiv.org/abs/1705.07874")
def gradient_shap(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    baseline: str = "space",
    samples: int = 16,
    noise: float = 0.0,
    seed: int = 0,
) -> TokenScores:
    """Mean over `samples` of <dF/dx_i at a random point of the path, x_i - b_i>, by Captum.

    A Monte-Carlo estimate of integrated gradients, without a certificate. `noise` is the standard deviation added to
    the input at each sample. What is not a feature is held real, as in `layer_integrated_gradients`.
    """
    if samples < 1 or noise < 0:
        raise OptionError(f"gradient_shap: samples is {samples} and noise {noise}; expected at least 1 and 0.")
    path = make_path(loaded, generation, features=features, baseline=baseline)
    start = (path.input - path.delta)[None].to(loaded.dtype)

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        scores: Tensor = GradientShap(forward).attribute(
            x.requires_grad_(), baselines=start, n_samples=samples, stdevs=noise
        )
        return scores[0].sum(dim=-1)

    return score_tokens(
        loaded,
        generation,
        work,
        method="gradient_shap",
        targets=targets,
        features=features,
        signed=True,
        settings={"baseline": baseline, "samples": samples, "noise": noise, "seed": seed},
        seed=seed,
    )
