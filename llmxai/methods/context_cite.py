"""ContextCite: a sparse linear surrogate of F over random subsets of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._masks import random_masks, score_by_removal
from llmxai.methods._registry import method
from llmxai.methods._removal import Removal
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


@method("context_cite", needs={"forward"}, source="Cohen-Wang et al. 2024, https://arxiv.org/abs/2409.00729")
def context_cite(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    operator: str = "delete",
    masks: int = 64,
    alpha: float = 0.01,
    seed: int = 0,
) -> TokenScores:
    """Weights of a lasso fitted to the logit of the target's probability on `masks` random subsets (section 3).

    Subsets keep each token with probability 1/2; columns are standardised and the outputs divided by the number of
    target tokens before the fit, as in the paper's code. For a contrast or a logit, F itself is fitted.
    """
    if masks < 2 or alpha < 0:
        raise OptionError(f"context_cite: masks is {masks} and alpha {alpha}; expected at least 2 and 0.")

    def fit(removal: Removal) -> Float[Tensor, " feature"]:
        subsets = random_masks(masks, len(removal.features), seed=seed)
        f = removal.values(subsets)
        if removal.target.kind == "logprob":
            f = f - torch.log1p(-torch.exp(f.clamp(max=-1e-12)))
        scale = len(removal.target.ids)
        scaler = StandardScaler().fit(subsets.double().numpy())
        lasso = Lasso(alpha=alpha, random_state=0).fit(scaler.transform(subsets.double().numpy()), (f / scale).numpy())
        return torch.from_numpy(lasso.coef_ / scaler.scale_ * scale)

    return score_by_removal(
        loaded,
        generation,
        fit,
        method="context_cite",
        targets=targets,
        features=features,
        operator=operator,
        seed=seed,
        settings={"masks": masks, "alpha": alpha},
    )
