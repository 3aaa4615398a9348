"""LIME over removals of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum._utils.models.linear_model import SkLearnLasso
from captum.attr import Lime
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._masks import score_by_removal
from llmxai.methods._registry import method
from llmxai.methods._removal import Removal, removal_forward
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


@method("lime", needs={"forward"}, source="Ribeiro et al. 2016, https://arxiv.org/abs/1602.04938")
def lime(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    operator: str = "delete",
    samples: int = 128,
    alpha: float = 0.01,
    seed: int = 0,
) -> TokenScores:
    """Weights of a lasso (`alpha`) fitted to `samples` removals that are weighted by their likeness to the input.

    By Captum, with its defaults: each token kept with probability 1/2, an exponential kernel over the cosine distance.
    """
    if samples < 2 or alpha < 0:
        raise OptionError(f"lime: samples is {samples} and alpha {alpha}; expected at least 2 and 0.")

    def fit(removal: Removal) -> Float[Tensor, " feature"]:
        n = len(removal.features)
        explainer = Lime(removal_forward(removal), interpretable_model=SkLearnLasso(alpha=alpha))
        weights: Tensor = explainer.attribute(
            torch.ones(1, n), baselines=torch.zeros(1, n), n_samples=samples, perturbations_per_eval=16
        )
        return weights[0]

    return score_by_removal(
        loaded,
        generation,
        fit,
        method="lime",
        targets=targets,
        features=features,
        operator=operator,
        seed=seed,
        settings={"samples": samples, "alpha": alpha},
    )
