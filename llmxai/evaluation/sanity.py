"""Does an explanation depend on the model's weights, and stay put under small changes of the input?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from captum.metrics import sensitivity_max
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from llmxai.models import LoadedModel, embed, embedding_module
from llmxai.models.forward import frozen_eval
from llmxai.types import Generation

Scores = Float[Tensor, " feature"]
BINS = 20


def randomised(loaded: LoadedModel, *, seed: int) -> LoadedModel:
    """A copy with every weight below the embeddings drawn anew, with its tensor's own mean and spread.

    The end of the cascade of Adebayo et al. 2018 (https://arxiv.org/abs/1810.03292, section 3.1). The embeddings (and a
    head that is tied to them) stay, so that inputs and baselines are the same.
    """
    model = copy.deepcopy(loaded.model)
    kept = {id(parameter) for parameter in embedding_module(model).parameters()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in kept and parameter.numel() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(parameter.mean() + parameter.std() * noise)
    return replace(loaded, model=model, name=f"{loaded.name} with random weights", weight_digest=None, weight_files=())


def randomisation(scores: Scores, scores_of_random: Scores) -> dict[str, float]:
    """How alike the explanations of the model and of its randomised copy are, and how much simpler the first is.

    `randomised_spearman`: Spearman of the sizes (Adebayo et al. 2018): near 0 is right, near 1 means that the method
    does not look at the weights. `emprt`: relative rise of the explanation's histogram entropy with random weights
    (Hedstrom et al. 2024, https://arxiv.org/abs/2401.06465, eq. 7): above 0 is right. Absent where not defined.
    """
    a, b = scores.abs().numpy(), scores_of_random.abs().numpy()
    found = {}
    if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
        found["randomised_spearman"] = float(stats.spearmanr(a, b).statistic)
    complexity = histogram_entropy(a)
    if complexity > 0:
        found["emprt"] = (histogram_entropy(b) - complexity) / complexity
    return found


def histogram_entropy(values: Float[np.ndarray, " feature"]) -> float:
    """Shannon entropy (nats) of the histogram of the sizes, `BINS` equal bins from 0 to the largest."""
    if values.max() == 0:
        return 0.0
    counts, _ = np.histogram(values / values.max(), bins=BINS, range=(0, 1))
    return float(stats.entropy(counts))


def max_sensitivity(
    loaded: LoadedModel,
    generation: Generation,
    explain: Callable[[], Scores],
    *,
    radius: float = 0.02,
    samples: int,
    seed: int,
) -> dict[str, float]:
    """Largest relative change of the scores under noise on the embeddings (Yeh et al. 2019, eq. 3), by Captum.

    Noise is uniform within `radius` times the spread of the embeddings. `explain` is run again for every sample. A
    method that sees only ids that are removed or kept sees the noise too, in the embeddings of what is kept.
    """
    with frozen_eval(loaded.model):
        x = embed(loaded.model, generation.ids)[None]

    def scores_at(points: tuple[Tensor, ...]) -> tuple[Tensor]:
        rows = []
        for point in points[0]:
            with shifted(loaded, generation, point - x[0]):
                rows.append(explain())
        return (torch.stack(rows),)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value: Tensor = sensitivity_max(
            scores_at,
            x,
            perturb_radius=radius * float(x.std()),
            n_perturb_samples=samples,
            max_examples_per_batch=1,
        )
    return {"max_sensitivity": float(value[0])} if torch.isfinite(value).all() else {}


@contextmanager
def shifted(loaded: LoadedModel, generation: Generation, noise: Float[Tensor, "seq hidden"]) -> Iterator[None]:
    """Move the embeddings of this very sequence by `noise`; other lookups (baselines) stay as they are."""
    ids = torch.tensor([generation.ids])

    def move(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        same = inputs[0].shape == ids.shape and bool((inputs[0].cpu() == ids).all())
        return output + noise.to(output) if same else output

    handle = embedding_module(loaded.model).register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()
