"""Methods that take gradients at one point or a few samples, most of them by Captum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from captum.attr import DeepLift, GradientShap, InputXGradient, Saliency
from jaxtyping import Float
from torch import Tensor, nn, randn_like

from llmxai.errors import UnsupportedModelError
from llmxai.methods.features import visible_features
from llmxai.methods.gradients.path_gradients import make_path
from llmxai.methods.registry import at_least, between, method
from llmxai.methods.targets import Target, TargetRows, kinds, targets_of
from llmxai.models import LoadedModel, embed, forward_logits
from llmxai.models.embedding import input_device
from llmxai.models.forward import frozen_eval, seeded
from llmxai.types import Generation, Scores

Forward = Callable[[Float[Tensor, "batch seq hidden"]], Float[Tensor, " batch"]]
Work = Callable[[Forward, Float[Tensor, "1 seq hidden"]], Float[Tensor, " seq"]]


def score_tokens(
    loaded: LoadedModel,
    generation: Generation,
    work: Work,
    *,
    method: str,
    targets: Sequence[Target] | None,
    features: str,
    signed: bool,
    settings: dict[str, object],
    seed: int = 0,
) -> Scores:
    """Run `work` for each target on F of the embeddings, with one seed, and keep the scores of its features."""
    targets = targets_of(generation, targets)
    chosen = visible_features(generation, targets, features=features)
    with frozen_eval(loaded.model), seeded(seed, device=input_device(loaded.model)):
        x = embed(loaded.model, generation.ids, source=generation.source_len)[None]
        rows = [work(_forward(loaded, generation, target), x).detach().double().cpu() for target in targets]
    return Scores(
        method=method,
        values=torch.stack(rows) * chosen,
        features=chosen,
        signed=signed,
        settings={"target": kinds(targets), "features": features, **settings},
    )


def _forward(loaded: LoadedModel, generation: Generation, target: Target) -> Forward:
    rows = TargetRows.of([target])

    def forward(embeddings: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, " batch"]:
        end = target.last + 1
        logits = forward_logits(
            loaded.model,
            embeddings[:, :end],
            ids=generation.ids[:end],
            positions=rows.positions,
            source=generation.source_len,
        )
        return rows.values(logits)[:, 0]

    return forward


def gradient(forward: Forward, points: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
    """dF/dx at each point."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(forward(points).sum(), points)[0]


@method("saliency", needs={"gradients"}, source="Simonyan et al. 2013, https://arxiv.org/abs/1312.6034")
def saliency(
    loaded: LoadedModel, generation: Generation, *, targets: Sequence[Target] | None = None, features: str = "content"
) -> Scores:
    """|dF/dx_i|_2 of every token, by Captum: how much F changes for a small step; unsigned."""

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        gradients: Tensor = Saliency(forward).attribute(x.requires_grad_(), abs=False)
        length: Tensor = gradients[0].norm(dim=-1)
        return length

    return score_tokens(
        loaded,
        generation,
        work,
        method="saliency",
        targets=targets,
        features=features,
        signed=False,
        settings={"norm": 2},
    )


@method("gradient_x_input", needs={"gradients"}, source="Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713")
def gradient_x_input(
    loaded: LoadedModel, generation: Generation, *, targets: Sequence[Target] | None = None, features: str = "content"
) -> Scores:
    """<dF/dx_i, x_i> of every token, by Captum: exact if F is linear in the embeddings."""

    def work(forward: Forward, x: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, " seq"]:
        scores: Tensor = InputXGradient(forward).attribute(x.requires_grad_())
        return scores[0].sum(dim=-1)

    return score_tokens(
        loaded,
        generation,
        work,
        method="gradient_x_input",
        targets=targets,
        features=features,
        signed=True,
        settings={},
    )


@method(
    "smoothgrad",
    needs={"gradients"},
    source="Smilkov et al. 2017, https://arxiv.org/abs/1706.03825",
    limits={"samples": at_least(1), "noise": at_least(0)},
)
def smoothgrad(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    features: str = "content",
    samples: int = 8,
    noise: float = 0.1,
    seed: int = 0,
) -> Scores:
    """Mean over `samples` of |dF/dx_i|_2 at embeddings with Gaussian noise, `noise` times the embeddings' own spread.

    The length is taken before the mean; Captum's NoiseTunnel averages the signed gradients, which cancel.
    """

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


@method(
    "gradient_shap",
    needs={"gradients"},
    source="Lundberg & Lee 2017, https://arxiv.org/abs/1705.07874",
    limits={"samples": at_least(1), "noise": at_least(0)},
)
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
) -> Scores:
    """Mean over `samples` of <dF/dx_i at a random point of the path, x_i - b_i>, by Captum.

    A Monte Carlo estimate of integrated gradients, without a certificate. `noise` is the standard deviation of the
    noise added to the input of each sample. Tokens that are not features are held, as in `layer_integrated_gradients`.
    """
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


@method(
    "mc_dropout",
    needs={"gradients"},
    source="Gal & Ghahramani 2016, https://arxiv.org/abs/1506.02142; of explanations: Bykov et al. 2020, "
    "https://arxiv.org/abs/2006.09000",
    limits={"samples": at_least(2), "rate": between(0, 1)},
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
) -> Scores:
    """Standard deviation of <dF/dx_i, x_i> over `samples` draws of dropout on the embeddings: spread, not size.

    Modern decoders have no dropout of their own, so elements of the embeddings are dropped (and the rest scaled up).
    """

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


class _Wrapped(nn.Module):
    """F as a module around the model, so that Captum finds the layers that its rules apply to."""

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
) -> Scores:
    """DeepLIFT (rescale rule) against a baseline, by Captum.

    Captum has rules for activations that are torch.nn modules. It has none for a softmax called as a function (as in
    the attention of every transformer here), for products of activations and for norms; the result would be gradient
    x (input - baseline) under another name. Raises UnsupportedModelError for such models.
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
            warnings.filterwarnings("ignore", "Setting forward, backward hooks", UserWarning)  # Captum removes them
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
