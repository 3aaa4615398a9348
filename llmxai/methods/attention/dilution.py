"""Where a rollout dilutes: figures of its partial products, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import rel_entr
from scipy.stats import entropy
from torch import Tensor

from llmxai.types import Dilution, DilutionCurve, Rollout


@dataclass
class CurveRecorder:
    """Takes the rows after each layer, top layer first."""

    seen: Int[Tensor, " target"]
    """Positions that each target sees."""
    steps: list[tuple[Tensor, ...]] = field(default_factory=list)

    @classmethod
    def of(cls, positions: Sequence[int]) -> CurveRecorder:
        return cls(seen=torch.tensor(positions) + 1)

    def add(self, rows: Float[Tensor, "target seq"], null: Float[Tensor, "target seq"]) -> None:
        self.steps.append(
            (rows[:, 0].clone(), entropies(rows, self.seen), divergences(rows, null), similarities(rows, self.seen))
        )

    def curve(self) -> DilutionCurve:
        sink, entropy, divergence, similarity = (torch.stack(figure, dim=1) for figure in zip(*self.steps, strict=True))
        return DilutionCurve(sink_mass=sink, entropy=entropy, null_divergence=divergence, similarity=similarity)


def shares(rows: Float[Tensor, "target seq"]) -> Float[Tensor, "target seq"]:
    """Each row scaled to sum 1; a row of zeros stays one."""
    total = rows.sum(dim=1, keepdim=True)
    return torch.where(total > 0, rows / total.clamp(min=torch.finfo(rows.dtype).tiny), 0)


def entropies(rows: Float[Tensor, "target seq"], seen: Int[Tensor, " target"]) -> Float[Tensor, " target"]:
    """Shannon entropy of each row divided by that of a uniform one over the positions seen; 0 for a single position."""
    p = shares(rows)
    most = seen.to(p.dtype).log()
    return torch.where(seen > 1, -torch.xlogy(p, p).sum(dim=1) / most.clamp(min=1e-9), 0).clamp(0, 1)


def divergences(rows: Float[Tensor, "target seq"], null: Float[Tensor, "target seq"]) -> Float[Tensor, " target"]:
    """Jensen-Shannon divergence (bits) of each row from its null, each scaled to sum 1."""
    p, q = shares(rows), shares(null)
    m = (p + q) / 2

    def bits(a: Tensor) -> Tensor:
        return torch.where(a > 0, a * (a / m.clamp(min=torch.finfo(m.dtype).tiny)).log2(), 0).sum(dim=1)

    return ((bits(p) + bits(q)) / 2).clamp(0, 1)


def similarities(rows: Float[Tensor, "target seq"], seen: Int[Tensor, " target"]) -> Float[Tensor, " target"]:
    """Mean cosine of each row with the others' over the positions that both see; 1 where there is one row.

    A row with no mass on those positions counts as 0.
    """
    n = len(rows)
    if n == 1:
        return torch.ones(1, dtype=rows.dtype)
    both = torch.minimum(seen[:, None], seen)  # [target, target]
    squares = rows.square().cumsum(dim=1)
    norms = squares.gather(1, both - 1).sqrt()  # entry [s, t]: norm of row s over what s and t see
    scale = norms * norms.T
    cosines = torch.where(scale > 0, (rows @ rows.T) / scale.clamp(min=torch.finfo(rows.dtype).tiny), 0)
    return ((cosines.sum(dim=1) - cosines.diagonal()) / (n - 1)).clamp(0, 1)


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
