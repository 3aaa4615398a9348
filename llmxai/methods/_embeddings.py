"""F as a function of all embeddings of a sequence, and the features of a target: what one-pass methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llmxai.methods._path import chosen_tokens
from llmxai.methods._scores import TokenScores
from llmxai.methods._targets import Target, TargetRows, kinds, token_targets
from llmxai.models import LoadedModel, embed, forward_logits
from llmxai.models.seams import undisturbed
from llmxai.types import Generation

Forward = Callable[[Float[Tensor, "batch seq hidden"]], Float[Tensor, " batch"]]
Work = Callable[[Forward, Float[Tensor, "1 seq hidden"]], Float[Tensor, " seq"]]


@contextmanager
def seeded(seed: int, *, device: torch.device) -> Iterator[None]:
    """Draw from `seed` inside, in torch and numpy (Captum uses both); afterwards both states are the caller's again."""
    devices = [device.index or 0] if device.type == "cuda" else []
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)


def visible_features(generation: Generation, targets: Sequence[Target], *, features: str) -> Bool[Tensor, "target seq"]:
    """The chosen tokens (see `chosen_tokens`) up to each target's last predicting position."""
    chosen = chosen_tokens(generation, features=features)
    last = torch.tensor([target.last for target in targets])
    return chosen & (torch.arange(len(chosen)) <= last[:, None])


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
) -> TokenScores:
    """Run `work` for each target on F of the embeddings, under one seed, and keep what falls on its features."""
    targets = tuple(targets) if targets is not None else token_targets(generation)
    chosen = visible_features(generation, targets, features=features)
    with undisturbed(loaded.model), seeded(seed, device=loaded.model.device):
        x = embed(loaded.model, generation.ids)[None]
        rows = [
            work(_forward(loaded, target, source=generation.source_len), x).detach().double().cpu()
            for target in targets
        ]
    return TokenScores(
        method=method,
        values=torch.stack(rows) * chosen,
        features=chosen,
        signed=signed,
        settings={"target": kinds(targets), "features": features, **settings},
    )


def _forward(loaded: LoadedModel, target: Target, *, source: int) -> Forward:
    rows = TargetRows.of([target])

    def forward(embeddings: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, " batch"]:
        seen = embeddings[:, : target.last + 1]
        return rows.values(forward_logits(loaded.model, seen, positions=rows.positions, source=source))[:, 0]

    return forward


def gradient(forward: Forward, points: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
    """dF/dx at each point."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(forward(points).sum(), points)[0]
