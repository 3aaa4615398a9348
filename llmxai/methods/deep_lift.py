"""DeepLIFT, for the models to which Captum's rules apply."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from captum.attr import DeepLift
from jaxtyping import Float
from torch import Tensor, nn

from llmxai.errors import UnsupportedModelError
from llmxai.methods._embeddings import Forward, score_tokens
from llmxai.methods._path import make_path
from llmxai.methods._registry import method
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target
from llmxai.models import LoadedModel
from llmxai.types import Generation


class _Wrapped(nn.Module):
    """F as a module over the model, so that Captum finds the layers that its rules are for."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self.compute = forward

    def forward(self, embeddings: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch 1"]:
        return self.compute(embeddings)[:, None]


@method("deep_lift", needs={"gradients"}, source="Shrikumar et al. 2017, https://arxiv.org/abs/1704.02685")
def deep_lift(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    baseline: str = "space",
) -> TokenScores:
    """DeepLIFT (rescale rule) against a baseline, by Captum.

    Captum has rules for activations that are modules of torch.nn. A softmax that is a function call, as in the
    attention of every transformer here, products of activations and norms get none, and what would come out then is
    gradient x (input - baseline) under another name. Raises UnsupportedModelError for such models.
    """
    if unruled := sorted(
        {
            type(m).__name__
            for m in loaded.model.modules()
            if "Attention" in type(m).__name__ or "Norm" in type(m).__name__
        }
    ):
        raise UnsupportedModelError(
            f"deep_lift: {loaded.name} computes {unruled[0]}, for which Captum's DeepLIFT has no rule; its numbers "
            f"would be gradient x (input - baseline) under another name. Use layer_integrated_gradients."
        )
    path = make_path(loaded, generation, features=features, baseline=baseline)
    start = (path.input - path.delta)[None].to(loaded.dtype)

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting forward, backward hooks", UserWarning)  # Captum takes them off
            scores: Tensor = DeepLift(_Wrapped(loaded.model, forward)).attribute(
                x.requires_grad_(), baselines=start, target=0
            )
        return scores[0].sum(dim=-1)

    return score_tokens(
        loaded,
        generation,
        work,
        method="deep_lift",
        targets=targets,
        features=features,
        signed=True,
        settings={"baseline": baseline},
    )
