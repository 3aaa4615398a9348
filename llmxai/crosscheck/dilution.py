"""How much of a rollout row says anything."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import distance
from scipy.stats import entropy


def normalised_entropy(mass: Float[np.ndarray, " feature"]) -> float | None:
    """Shannon entropy of the row over the features, divided by that of a uniform row: 0 to 1.

    None under two features or where there is no mass on them.
    """
    if len(mass) < 2 or mass.sum() <= 0:
        return None
    return float(entropy(mass) / np.log(len(mass)))


def jensen_shannon(p: Float[np.ndarray, " seq"], q: Float[np.ndarray, " seq"]) -> float:
    """Jensen-Shannon divergence in bits, 0 (equal) to 1 (disjoint), of two rows of mass, each scaled to sum 1."""
    return float(distance.jensenshannon(p, q, base=2) ** 2)
