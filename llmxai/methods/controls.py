"""Controls that a method must beat: chance, and nearness to the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmxai.methods.features import visible_features
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, targets_of
from llmxai.models import LoadedModel
from llmxai.types import Generation, Scores


@method("random", needs=set(), source="control: https://aclanthology.org/2020.acl-main.408")
def random_scores(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    seed: int = 0,
) -> Scores:
    """Uniform random scores: the level of chance. They depend on the seed and the ids, so questions differ."""
    del loaded
    targets = targets_of(generation, targets)
    chosen = visible_features(generation, targets, features=features)
    mixed = (seed * 1_000_003 + sum((i + 1) * token for i, token in enumerate(generation.ids))) % 2**63
    values = torch.rand(chosen.shape, generator=torch.Generator().manual_seed(mixed), dtype=torch.float64)
    return Scores("random", values * chosen, chosen, signed=False, settings={"seed": seed, "features": features})


@method("recency", needs=set(), source="control: https://aclanthology.org/2020.acl-main.408")
def recency(
    loaded: LoadedModel, generation: Generation, *, targets: Sequence[Target] | None = None, features: str = "content"
) -> Scores:
    """1 / (1 + distance to the predicting position): the level of nearness alone."""
    del loaded
    targets = targets_of(generation, targets)
    chosen = visible_features(generation, targets, features=features)
    distance = torch.tensor([target.last for target in targets])[:, None] - torch.arange(chosen.shape[1])
    values = torch.where(chosen, 1.0 / (1.0 + distance.clamp(min=0).double()), 0.0)
    return Scores("recency", values, chosen, signed=False, settings={"features": features})
