"""Which keys each query sees, as intervals: what uniform attention spreads over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmxai.errors import UnsupportedModelError

ROWS = 256
"""Queries of a mask that are looked at together."""


@dataclass(frozen=True)
class Visible:
    """Query i sees the keys [first[i], end[i]). int64, on the CPU."""

    first: Int[Tensor, " query"]
    end: Int[Tensor, " query"]

    def keys(self, queries: slice) -> slice:
        """The keys that any of the queries sees."""
        return slice(int(self.first[queries].min()), int(self.end[queries].max()))

    def without_sink(self) -> Visible:
        """The same with key 0 hidden from every query that sees another."""
        alone = self.end <= 1
        return Visible(first=torch.where(alone, self.first, self.first.clamp(min=1)), end=self.end)

    def spread(self, mass: Float[Tensor, "target query"]) -> Float[Tensor, "target key"]:
        """`mass` times the uniform attention matrix: each query's mass in equal parts on all keys that it sees.

        A sum over the queries that see a key is a sum of differences from the right, so no matrix is made.
        """
        share = mass / (self.end - self.first).to(mass.dtype)
        steps = torch.zeros_like(mass)
        steps.index_add_(1, self.end - 1, share)
        inner = self.first > 0
        steps.index_add_(1, self.first[inner] - 1, -share[:, inner])
        return steps.flip(1).cumsum(1).flip(1).clamp(min=0)


def visible_in_map(weights: Float[Tensor, "1 head query key"]) -> Visible:
    """From whole attention weights: causal where no query gives any to a later key."""
    return visible_keys(None, weights.shape[2], keys=weights.shape[3] if weights.triu(1).any() else None)


def visible_keys(mask: Tensor | None, n: int, *, keys: int | None = None) -> Visible:
    """From a mask [1, head, query, key], boolean or added to the scores; None is causal, or to all `keys`.

    Raises UnsupportedModelError for a mask with holes.
    """
    if mask is None and keys is not None:
        return Visible(first=torch.zeros(n, dtype=torch.int64), end=torch.full((n,), keys))
    if mask is None:
        return Visible(first=torch.zeros(n, dtype=torch.int64), end=torch.arange(1, n + 1))
    firsts, ends, holes = [], [], False
    for start in range(0, n, ROWS):
        rows = mask[0, 0, start : start + ROWS]
        seen = (rows if rows.dtype == torch.bool else rows > torch.finfo(rows.dtype).min / 2).to(torch.uint8)
        first = seen.argmax(dim=1)
        end = seen.shape[1] - seen.flip(1).argmax(dim=1)
        holes |= bool((seen.sum(dim=1) != end - first).any())
        firsts.append(first.cpu())
        ends.append(end.cpu())
    if holes:
        raise UnsupportedModelError(
            "A layer's mask hides keys between those that a query sees; attention rollout knows causal and windowed "
            "masks only."
        )
    return Visible(first=torch.cat(firsts), end=torch.cat(ends))
