"""KernelSHAP over removals of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import KernelShap
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


@method("kernel_shap", needs={"forward"}, source="Lundberg & Lee 2017, https://arxiv.org/abs/1705.07874")
def kernel_shap(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    operator: str = "delete",
    samples: int = 128,
    seed: int = 0,
) -> TokenScores:
    """Shapley values of the tokens, estimated from `samples` removals by Captum's weighted regression."""
    if samples < 2:
        raise OptionError(f"kernel_shap: samples is {samples}; expected at least 2.")

    def fit(removal: Removal) -> Float[Tensor, " feature"]:
        n = len(removal.features)
        if n == 1:  # one player gets it all; Captum's kernel is undefined there
            return torch.tensor([removal.full() - float(removal.values(torch.zeros(1, 1, dtype=torch.bool))[0])])
        shapley: Tensor = KernelShap(removal_forward(removal)).attribute(
            torch.ones(1, n), baselines=torch.zeros(1, n), n_samples=samples, perturbations_per_eval=16
        )
        return shapley[0]

    return score_by_removal(
        loaded,
        generation,
        fit,
        method="kernel_shap",
        targets=targets,
        features=features,
        operator=operator,
        seed=seed,
        settings={"samples": samples},
    )
