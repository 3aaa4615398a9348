"""How a rollout dilutes: figures of its partial products, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmxai.methods.targets import Target
from llmxai.types import Dilution, DilutionCurve, Scores


@dataclass
class CurveRecorder:
    """Records the rows after each layer, top layer first."""

    seen: Int[Tensor, " target"]
    """Positions that each target sees."""
    steps: list[tuple[Tensor, ...]] = field(default_factory=list)

    @classmethod
    def of(cls, targets: Sequence[Target]) -> CurveRecorder:
        return cls(seen=torch.tensor([target.last for target in targets]) + 1)

    def add(self, rows: Float[Tensor, "target seq"], null: Float[Tensor, "target seq"]) -> None:
        self.steps.append(
            (rows[:, 0].clone(), entropies(rows, self.seen), divergences(rows, null), similarities(rows, self.seen))
        )

    def curve(self) -> DilutionCurve:
        sink, entropy, divergence, similarity = (torch.stack(figure, dim=1) for figure in zip(*self.steps, strict=True))
        return DilutionCurve(sink_mass=sink, entropy=entropy, null_divergence=divergence, similarity=similarity)


def shares(rows: Float[Tensor, "target seq"]) -> Float[Tensor, "target seq"]:
    """Each row scaled to sum 1; a row of zeros stays zero."""
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

    empty, other = (side.sum(dim=1) <= 0 for side in (p, q))
    apart = torch.where(empty ^ other, 1.0, (bits(p) + bits(q)) / 2)  # a row without mass is at the largest distance
    return apart.clamp(0, 1)


def similarities(rows: Float[Tensor, "target seq"], seen: Int[Tensor, " target"]) -> Float[Tensor, " target"]:
    """Mean cosine of each row with the others over the positions that both see; 1 for a single row.

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


def dilutions(
    scores: Scores, features: Bool[Tensor, "target seq"], seen: Int[Tensor, " target"]
) -> tuple[Dilution, ...]:
    """The figures of every row of an attention method; a target sees its first `seen` positions."""
    assert scores.null is not None
    rows, null = scores.values.double(), scores.null.double()
    mass, many = (rows * features).sum(dim=1), features.sum(dim=1)
    figures = zip(
        rows[:, 0].tolist(),
        mass.tolist(),
        entropies(rows * features, many).tolist(),
        divergences(rows, null).tolist(),
        similarities(rows, seen).tolist(),
        ((many > 1) & (mass > 0)).tolist(),
        strict=True,
    )
    return tuple(
        Dilution(
            sink_mass=sink,
            feature_mass=on_features,
            entropy=entropy if defined else None,
            null_divergence=divergence,
            similarity=similarity,
        )
        for sink, on_features, entropy, divergence, similarity, defined in figures
    )
