"""Methods that fit a model to F under random removals: LIME, KernelSHAP, ContextCite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from captum._utils.models.linear_model import SkLearnLasso
from captum.attr import KernelShap, Lime
from jaxtyping import Bool, Float
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from llmxai.methods.features import visible_features
from llmxai.methods.perturbation.removal import SetFunction, removal_forward
from llmxai.methods.registry import at_least, method
from llmxai.methods.targets import Target, kinds, targets_of
from llmxai.models import LoadedModel
from llmxai.models.embedding import input_device
from llmxai.models.forward import seeded
from llmxai.types import Generation, Scores

ROUNDS = 100_000
"""Most rounds of a lasso's coordinate descent; with few removals, scikit-learn's 1,000 do not suffice."""

Fit = Callable[[SetFunction], Float[Tensor, " feature"]]


def score_by_removal(
    loaded: LoadedModel,
    generation: Generation,
    fit: Fit,
    *,
    method: str,
    targets: Sequence[Target] | None,
    features: str,
    operator: str,
    seed: int,
    settings: dict[str, object],
) -> Scores:
    """Run `fit` for each target on its removals, with one seed.

    The features of a target are at or before its first predicting position: in a span of answer tokens, the earlier
    ones are not features.
    """
    targets = targets_of(generation, targets)
    chosen = visible_features(generation, targets, features=features)
    first = torch.tensor([min(target.positions) for target in targets])
    chosen = chosen & (torch.arange(chosen.shape[1]) <= first[:, None])
    values = torch.zeros(chosen.shape, dtype=torch.float64)
    forwards = 0
    for t, target in enumerate(targets):
        places = tuple(chosen[t].nonzero()[:, 0].tolist())
        removal = SetFunction(loaded, generation, target, places, operator)
        with seeded(seed, device=input_device(loaded.model)):
            values[t, list(places)] = fit(removal).double().cpu()
        forwards += removal.forwards
    return Scores(
        method=method,
        values=values,
        features=chosen,
        signed=True,
        settings={
            "target": kinds(targets),
            "features": features,
            "operator": operator,
            "seed": seed,
            "forwards": forwards,
            **settings,
        },
    )


def random_masks(n: int, features: int, *, seed: int) -> Bool[Tensor, "mask feature"]:
    """Subsets that keep each feature with probability 1/2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, features, generator=generator) < 0.5


@method(
    "lime",
    needs={"forward"},
    source="Ribeiro et al. 2016, https://arxiv.org/abs/1602.04938",
    limits={"samples": at_least(2), "alpha": at_least(0)},
)
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
) -> Scores:
    """Weights of a lasso (`alpha`) fitted to `samples` removals, weighted by their similarity to the input.

    By Captum, with its defaults: each token kept with probability 1/2, an exponential kernel on the cosine distance.
    """

    def fit(removal: SetFunction) -> Float[Tensor, " feature"]:
        n = len(removal.features)
        explainer = Lime(removal_forward(removal), interpretable_model=SkLearnLasso(alpha=alpha, max_iter=ROUNDS))
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


@method(
    "kernel_shap",
    needs={"forward"},
    source="Lundberg & Lee 2017, https://arxiv.org/abs/1705.07874",
    limits={"samples": at_least(2)},
)
def kernel_shap(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    operator: str = "delete",
    samples: int = 128,
    seed: int = 0,
) -> Scores:
    """Shapley values of the tokens, estimated from `samples` removals by Captum's weighted regression."""

    def fit(removal: SetFunction) -> Float[Tensor, " feature"]:
        n = len(removal.features)
        if n == 1:  # a single player gets everything; Captum's kernel is undefined there
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


@method(
    "context_cite",
    needs={"forward"},
    source="Cohen-Wang et al. 2024, https://arxiv.org/abs/2409.00729",
    limits={"masks": at_least(2), "alpha": at_least(0)},
)
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
) -> Scores:
    """Weights of a lasso fitted to the logit of the target's probability on `masks` random subsets (section 3).

    Subsets keep each token with probability 1/2; columns are standardised and the outputs divided by the number of
    target tokens before the fit, as in the paper's code. For a contrast or a logit, F itself is fitted.
    """

    def fit(removal: SetFunction) -> Float[Tensor, " feature"]:
        subsets = random_masks(masks, len(removal.features), seed=seed)
        f = removal.values(subsets)
        if removal.target.kind == "logprob":
            f = f - torch.log1p(-torch.exp(f.clamp(max=-1e-12)))
        scale = len(removal.target.ids)
        scaler = StandardScaler().fit(subsets.double().numpy())
        lasso = Lasso(alpha=alpha, max_iter=ROUNDS, random_state=0)
        lasso.fit(scaler.transform(subsets.double().numpy()), (f / scale).numpy())
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
