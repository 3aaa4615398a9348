"""F and its gradient along the path: one forward a node for all targets, one vector-Jacobian product a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.methods._path import Path
from llmxai.methods._targets import TargetRows
from llmxai.models import LoadedModel, forward_logits


@dataclass(frozen=True)
class PathFunction:
    """F of every target along a path. Use inside `undisturbed(model)`."""

    loaded: LoadedModel
    path: Path
    rows: TargetRows
    chunk_tokens: int
    """At most this many tokens (nodes x seq) go through the model at once; bounds the memory."""

    @property
    def chunk(self) -> int:
        return max(1, self.chunk_tokens // len(self.path.moving))

    def values(self, alphas: Sequence[float]) -> Float[Tensor, "node target"]:
        """F(x(a)) for every a and target, float64 on the CPU, from forward passes only."""
        parts = []
        with torch.no_grad():
            for first in range(0, len(alphas), self.chunk):
                points = self.path.points(alphas[first : first + self.chunk])
                logits = forward_logits(self.loaded.model, points.to(self.loaded.dtype), positions=self.rows.positions)
                parts.append(self.rows.values(logits).double().cpu())
        return self._finite(torch.cat(parts))

    def slopes(
        self, alphas: Sequence[float], targets: Sequence[int]
    ) -> Iterator[tuple[int, Float[Tensor, "target seq"]]]:
        """For every a in turn, its index and <dF/dx_i, input_i - baseline_i> for each target and token i.

        Summed over tokens this is dF/da. float64 on the CPU.
        """
        for first in range(0, len(alphas), self.chunk):
            part = self._slopes_of_chunk(alphas[first : first + self.chunk], targets)
            for k in range(part.shape[1]):
                yield first + k, part[:, k]

    def _slopes_of_chunk(self, alphas: Sequence[float], targets: Sequence[int]) -> Float[Tensor, "target node seq"]:
        delta = self.path.delta
        points = self.path.points(alphas).to(self.loaded.dtype).requires_grad_()
        with torch.enable_grad(), split_at_head(self.loaded) as split:
            logits = forward_logits(self.loaded.model, points, positions=self.rows.positions)
            total = self.rows.values(logits).sum()
            # each row of hidden states feeds one target only, so one backward through the head serves them all
            (at_rows,) = torch.autograd.grad(total, split.leaf)
        hidden = split.hidden
        parts = []
        for t in targets:
            mine = torch.tensor([owner == t for owner in self.rows.owner], device=at_rows.device)
            (grad,) = torch.autograd.grad(hidden, points, grad_outputs=at_rows * mine[:, None], retain_graph=True)
            parts.append((grad.to(delta.dtype) * delta).sum(dim=-1).double().cpu())
        return self._finite(torch.stack(parts))

    def _finite(self, numbers: Tensor) -> Tensor:
        if not torch.isfinite(numbers).all():
            raise NonFiniteError(
                f"{self.loaded.name}: NaN or infinity along the path from baseline to input, computed in "
                f"{self.loaded.dtype}. Load the model with --dtype float32 or bfloat16."
            )
        return numbers


class _Split:
    """The hidden states that go into the output head, cut from what computed them."""

    hidden: Tensor
    """With its history: what the vector-Jacobian products start from."""
    leaf: Tensor
    """Without: what the head's own gradient stops at."""

    def cut(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.hidden = inputs[0]
        self.leaf = inputs[0].detach().requires_grad_()
        return (self.leaf, *inputs[1:])


@contextmanager
def split_at_head(loaded: LoadedModel) -> Iterator[_Split]:
    """Cut the graph at the input of the output head for the forwards inside; the hook is gone afterwards."""
    head = loaded.model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(
            f"{type(loaded.model).__name__} names no output head, so its logits cannot be traced to positions."
        )
    split = _Split()
    handle = head.register_forward_pre_hook(split.cut)
    try:
        yield split
    finally:
        handle.remove()
