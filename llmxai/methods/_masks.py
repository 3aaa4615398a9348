"""What methods share that see the model only through removals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.methods._embeddings import seeded, visible_features
from llmxai.methods._removal import Removal
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target, kinds, token_targets
from llmxai.models import LoadedModel
from llmxai.types import Generation

Fit = Callable[[Removal], Float[Tensor, " feature"]]


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
) -> TokenScores:
    """Run `fit` for each target on its removals, under one seed.

    A feature of a target stands at or before its first predicting position: of a span of answer tokens, the earlier
    ones are no features.
    """
    targets = tuple(targets) if targets is not None else token_targets(generation)
    chosen = visible_features(generation, targets, features=features)
    first = torch.tensor([min(target.positions) for target in targets])
    chosen = chosen & (torch.arange(chosen.shape[1]) <= first[:, None])
    values = torch.zeros(chosen.shape, dtype=torch.float64)
    forwards = 0
    for t, target in enumerate(targets):
        places = tuple(chosen[t].nonzero()[:, 0].tolist())
        removal = Removal(loaded, generation, target, places, operator)
        with seeded(seed, device=loaded.model.device):
            values[t, list(places)] = fit(removal).double().cpu()
        forwards += removal.forwards
    return TokenScores(
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
