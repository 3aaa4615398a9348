"""Monte-Carlo dropout: how much a token's gradient times input wavers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import OptionError
from llmxai.methods._embeddings import Forward, gradient, score_tokens
from llmxai.methods._registry import method
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


@method(
    "mc_dropout",
    needs={"gradients"},
    source="Gal & Ghahramani 2016, https://arxiv.org/abs/1506.02142; of explanations: Bykov et al. 2020, "
    "https://arxiv.org/abs/2006.09000",
)
def mc_dropout(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    samples: int = 8,
    rate: float = 0.1,
    seed: int = 0,
) -> TokenScores:
    """Standard deviation of <dF/dx_i, x_i> over `samples` draws of dropout on the embeddings: spread, not size.

    Modern decoders have no dropout inside, so the elements of the embeddings are dropped (and the rest scaled up).
    """
    if samples < 2 or not 0 < rate < 1:
        raise OptionError(
            f"mc_dropout: samples is {samples} and rate {rate}; expected at least 2, and between 0 and 1."
        )

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        drawn = []
        for _ in range(samples):
            point = torch.nn.functional.dropout(x, p=rate)
            drawn.append((gradient(forward, point)[0] * point[0]).sum(dim=-1))
        return torch.stack(drawn).std(dim=0)

    return score_tokens(
        loaded,
        generation,
        work,
        method="mc_dropout",
        targets=targets,
        features=features,
        signed=False,
        settings={"samples": samples, "rate": rate, "seed": seed},
        seed=seed,
    )
