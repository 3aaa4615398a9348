"""How much of a rollout row says anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import rel_entr
from scipy.stats import entropy
from torch import Tensor

from llmxai.methods._curve import similarities
from llmxai.types import Dilution, Rollout


def dilutions(rollout: Rollout, features: Bool[Tensor, "target seq"], positions: Sequence[int]) -> tuple[Dilution, ...]:
    """The figures of every row; `positions` are the predicting positions, behind which a target sees nothing."""
    similar = similarities(rollout.rows.double(), torch.tensor(positions) + 1)
    found = []
    for t, position in enumerate(positions):
        row, null = rollout.rows[t].double().numpy(), rollout.null_rows[t].double().numpy()
        mine = features[t].numpy()
        found.append(
            Dilution(
                sink_mass=float(row[0]),
                feature_mass=float(row[mine].sum()),
                entropy=normalised_entropy(row[mine]),
                null_divergence=jensen_shannon(row[: position + 1], null[: position + 1]),
                similarity=float(similar[t]),
            )
        )
    return tuple(found)


def normalised_entropy(mass: Float[np.ndarray, " feature"]) -> float | None:
    """Shannon entropy of the row over the features, divided by that of a uniform row: 0 to 1.

    None under two features or where there is no mass on them.
    """
    if len(mass) < 2 or mass.sum() <= 0:
        return None
    return float(entropy(mass) / np.log(len(mass)))


def jensen_shannon(p: Float[np.ndarray, " seq"], q: Float[np.ndarray, " seq"]) -> float:
    """Jensen-Shannon divergence in bits, 0 (equal) to 1 (disjoint), of two rows of mass, each scaled to sum 1.

    A row without any mass is as far from every other as can be: 1 (0 from another such).
    """
    if p.sum() <= 0 or q.sum() <= 0:
        return 0.0 if p.sum() <= 0 and q.sum() <= 0 else 1.0
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2
    bits = (rel_entr(p, m).sum() + rel_entr(q, m).sum()) / (2 * np.log(2))
    return float(np.clip(bits, 0, 1))  # rounding can take it a hair below 0
