"""Does a method put the known sources first?"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor


def planted_truth(scores: Float[Tensor, " feature"], truth: Bool[Tensor, " feature"]) -> dict[str, float]:
    """Reciprocal rank of the best-placed source, and precision among the k top features, k being the sources' number.

    Precision at k as in Bastings et al. 2022 (https://arxiv.org/abs/2111.07367), section 4; the mean of reciprocal
    ranks over questions is the MRR. Ties share their mean rank, and their part of the places that are left. `_abs`: the
    same with the scores' sizes, signs dropped.
    """
    found = {}
    for suffix, values in (("", scores), ("_abs", scores.abs())):
        ranks = torch.from_numpy(stats.rankdata(-values.numpy(), method="average"))
        found[f"mrr{suffix}"] = float(1 / ranks[truth].min())
        found[f"precision{suffix}"] = _precision(values, truth)
    return found


def _precision(values: Float[Tensor, " feature"], truth: Bool[Tensor, " feature"]) -> float:
    k = int(truth.sum())
    least = values.sort(descending=True).values[k - 1]
    above, tied = values > least, values == least
    share = (k - int(above.sum())) / int(tied.sum())
    return float((truth & above).sum() + share * (truth & tied).sum()) / k
