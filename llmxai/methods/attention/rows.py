from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import UnsupportedModelError
from llmxai.methods.targets import target_positions
from llmxai.models import LoadedModel, ModelKind
from llmxai.types import Generation, Rollout


def starts(loaded: LoadedModel, generation: Generation) -> Float[Tensor, "target seq"]:
    """Rows that a rollout begins with: 1 at the predicting position, or at what a classifier's head reads.

    Where the head reads several positions (a mean), each has an equal part. Raises UnsupportedModelError where what it
    reads is unknown.
    """
    positions = target_positions(generation)
    if loaded.kind is not ModelKind.CLASSIFIER:
        return one_hot(positions)
    if not generation.read_at:
        raise UnsupportedModelError(
            f"{loaded.name}: the layers of {type(loaded.model).__name__} cannot be told apart, so the position that "
            f"its classifier reads is unknown, and attention rollout has nowhere to begin; integrated gradients work."
        )
    row = torch.zeros(1, positions[-1] + 1, dtype=torch.float64)
    row[0, list(generation.read_at)] = 1 / len(generation.read_at)
    return row


def refused_rollout(name: str, generation: Generation, *, reason: str) -> Rollout:
    """What stands in the place of a rollout that is not defined for the model: no mass anywhere, and the reason."""
    rows = torch.zeros(generation.n_targets, len(generation.ids), dtype=torch.float64)
    return Rollout(
        method=name,
        rows=rows,
        null_rows=rows,
        lost_mass=torch.ones(len(rows), dtype=rows.dtype),
        curve=None,
        settings={"refused": reason},
        refused=reason,
    )


def one_hot(positions: Sequence[int]) -> Float[Tensor, "target seq"]:
    """Rows of the identity, float64, as long as the last target sees."""
    return torch.eye(positions[-1] + 1, dtype=torch.float64)[list(positions)]


def padded(rows: Float[Tensor, "target seen"], generation: Generation) -> Float[Tensor, "target seq"]:
    """With a 0 for each token after the last predicting position."""
    return torch.nn.functional.pad(rows, (0, len(generation.ids) - rows.shape[1]))
