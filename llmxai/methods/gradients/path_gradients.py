"""F and its gradient along the path: one forward per node for all targets, one backward per target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.methods.features import baseline_embedding, moving_tokens
from llmxai.methods.targets import Target, TargetRows, seen_by
from llmxai.models import LoadedModel, embed, forward_logits, keeps_logits, prefix_cache
from llmxai.models.forward import own_errors
from llmxai.models.memory import ChunkSize, in_chunks, within_memory
from llmxai.models.precision import exact_products
from llmxai.types import Generation


@runtime_checkable
class Path(Protocol):
    """A path from a = 0 to the real input at a = 1, over the embeddings or over the presence of tokens."""

    @property
    def input(self) -> Float[Tensor, "seq hidden"]:
        """The real embeddings."""

    @property
    def moving(self) -> Bool[Tensor, " seq"]:
        """The tokens that change along the path."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The real tokens, which the model reads at every a."""

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """The context that the model needs during all passes along the path."""

    def inputs(self, loaded: LoadedModel, alphas: Sequence[float], live: slice) -> Float[Tensor, "node live *width"]:
        """The inputs at every a, with respect to which gradients are taken."""

    def logits(
        self,
        loaded: LoadedModel,
        inputs: Float[Tensor, "node live *width"],
        *,
        positions: Sequence[int],
        live: slice,
        prefix: DynamicCache | None,
    ) -> Float[Tensor, "node row vocab"]:
        """Logits at `positions` of the sequence, differentiable in `inputs`."""

    def slopes(
        self, gradient: Float[Tensor, "node live *width"], alphas: Sequence[float], live: slice
    ) -> Float[Tensor, "node live"]:
        """Each token's part of dF/da, from the gradient with respect to `inputs`."""

    def features(self, targets: Sequence[Target]) -> Bool[Tensor, "target seq"]:
        """The moving tokens that can get a value for a target."""


@dataclass(frozen=True)
class EmbeddingPath:
    """x(a) = baseline + a (input - baseline) on the moving tokens; held tokens keep their input."""

    input: Float[Tensor, "seq hidden"]
    baseline: Float[Tensor, "seq hidden"]
    moving: Bool[Tensor, " seq"]
    ids: tuple[int, ...]
    """What the model reads at every a: the real tokens."""
    source: int = 0
    """For an encoder-decoder: how many of the tokens go into the encoder."""

    @property
    def delta(self) -> Float[Tensor, "seq hidden"]:
        """input - baseline; 0 for held tokens."""
        return (self.input - self.baseline) * self.moving[:, None]

    def points(self, alphas: Sequence[float], *, live: slice = slice(None)) -> Float[Tensor, "node live hidden"]:
        """x(a) of the live tokens for every a; exactly the input for held tokens, and at a = 1."""
        a = torch.tensor(list(alphas), dtype=self.input.dtype, device=self.input.device)
        return self.input[live] - (1 - a)[:, None, None] * self.delta[live]

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Nothing: the model runs as usual."""
        del model
        return nullcontext()

    def inputs(self, loaded: LoadedModel, alphas: Sequence[float], live: slice) -> Float[Tensor, "node live hidden"]:
        """x(a) in the model's dtype."""
        return self.points(alphas, live=live).to(loaded.dtype)

    def logits(
        self,
        loaded: LoadedModel,
        inputs: Float[Tensor, "node live hidden"],
        *,
        positions: Sequence[int],
        live: slice,
        prefix: DynamicCache | None,
    ) -> Float[Tensor, "node row vocab"]:
        """Logits with `inputs` in the sequence."""
        places = [position - live.start for position in positions]
        return forward_logits(
            loaded.model, inputs, ids=self.ids[live], positions=places, prefix=prefix, source=self.source
        )

    def slopes(
        self, gradient: Float[Tensor, "node live hidden"], alphas: Sequence[float], live: slice
    ) -> Float[Tensor, "node live"]:
        """<dF/dx_i, input_i - baseline_i>."""
        del alphas
        delta = self.delta[live]
        return (gradient.to(delta.dtype) * delta).sum(dim=-1)

    def features(self, targets: Sequence[Target]) -> Bool[Tensor, "target seq"]:
        """The moving tokens that a target can see: all up to its last predicting position."""
        return self.moving & seen_by(targets, len(self.moving)).to(self.moving.device)


def make_path(loaded: LoadedModel, generation: Generation, *, features: str, baseline: str | Tensor) -> EmbeddingPath:
    """The path over the embeddings of a generation, in float32 (float64 for a float64 model)."""
    wide = torch.float64 if loaded.dtype == torch.float64 else torch.float32
    source = generation.source_len
    x = embed(loaded.model, generation.ids, source=source).to(wide)
    b = baseline_embedding(loaded, baseline, seq=len(generation.ids), source=source).to(x)
    moving = moving_tokens(generation, features=features).to(x.device)
    return EmbeddingPath(input=x, baseline=b.expand_as(x), moving=moving, ids=generation.ids, source=source)


Pullback = Callable[[Sequence[int], bool], Tensor]
"""From (the target of each node, or -1; whether another call follows) to the gradient at the path's inputs."""


ALIKE = 0.8
"""Nodes of one chunk serve at least this share of the targets that its busiest node serves ..."""
LEAST = 4
"""... unless the chunk would shrink below chunk_tokens / LEAST, where matrix products get slow."""


@dataclass(frozen=True)
class Node:
    """A point of the path and the targets whose gradient is needed there."""

    alpha: float
    targets: tuple[int, ...]


@dataclass(frozen=True)
class PathFunction:
    """F of every target along a path. Created by `path_function`; use it inside `frozen_eval(model)`.

    Tokens before the first moving one are the same at every node, so their keys and values are computed once; tokens
    after the last predicting position are never computed.
    """

    loaded: LoadedModel
    path: Path
    rows: TargetRows
    size: ChunkSize
    live: slice
    """The tokens that are computed at every node."""
    prefix: DynamicCache | None
    """Keys and values of the tokens before them."""

    @property
    def chunk(self) -> int:
        """Nodes that go through the model at once."""
        return self.size.items(self._length)

    def values(self, alphas: Sequence[float]) -> Float[Tensor, "node target"]:
        """F at every a, for every target, float64 on the CPU, from forward passes only."""

        @torch.no_grad()
        def of_chunk(chosen: slice) -> Tensor:
            return self.rows.values(self._logits(self._inputs(alphas[chosen]))).double().cpu()

        with exact_products():
            return self._finite(in_chunks(of_chunk, size=self.size, each=self._length, items=len(alphas)))

    def slopes(self, nodes: Sequence[Node]) -> Iterator[tuple[int, int, Float[Tensor, " seq"]]]:
        """(index of a node, target, every token's part of dF/da), in no particular order.

        float64 on the CPU. Nodes that serve the same number of targets go through together, and a backward pass carries
        a different target for every node, so no pass is wasted on a pair that is not needed.
        """
        order = sorted(range(len(nodes)), key=lambda k: -len(nodes[k].targets))
        while order:
            most = len(nodes[order[0]].targets)
            alike = sum(len(nodes[k].targets) >= ALIKE * most for k in order[: self.chunk])
            size = max(alike, min(self.chunk, self.chunk // LEAST))
            chosen = order[:size]
            work = partial(self._slopes_of_chunk, chosen, [nodes[k] for k in chosen])
            part = within_memory(work, size=self.size, each=self._length, items=size)
            if part is not None:
                yield from part
                order = order[size:]

    @property
    def _length(self) -> int:
        """Tokens of one node."""
        return len(self.path.moving[self.live])

    def _inputs(self, alphas: Sequence[float]) -> Float[Tensor, "node live *width"]:
        return self.path.inputs(self.loaded, alphas, self.live)

    def _logits(self, inputs: Float[Tensor, "node live *width"]) -> Float[Tensor, "node row vocab"]:
        return self.path.logits(self.loaded, inputs, positions=self.rows.positions, live=self.live, prefix=self.prefix)

    def _slopes_of_chunk(
        self, indices: Sequence[int], nodes: Sequence[Node]
    ) -> list[tuple[int, int, Float[Tensor, " seq"]]]:
        alphas = [node.alpha for node in nodes]
        with own_errors(self.loaded.model, what="be differentiated along this path"):
            return self._slopes_by_target(indices, nodes, alphas)

    def _slopes_by_target(
        self, indices: Sequence[int], nodes: Sequence[Node], alphas: Sequence[float]
    ) -> list[tuple[int, int, Float[Tensor, " seq"]]]:
        pull = self._pullback(self._inputs(alphas).requires_grad_())
        passes = max(len(node.targets) for node in nodes)
        found = []
        for k in range(passes):
            carried = [node.targets[k] if k < len(node.targets) else -1 for node in nodes]
            grad = pull(carried, k < passes - 1)
            live = self._finite(self.path.slopes(grad, alphas, self.live).double().cpu())
            slopes = torch.zeros(len(nodes), len(self.path.moving), dtype=torch.float64)
            slopes[:, self.live] = live
            found += [(k, t, slope) for k, t, slope in zip(indices, carried, slopes, strict=True) if t >= 0]
        return found

    def _pullback(self, inputs: Float[Tensor, "node live *width"]) -> Pullback:
        """One forward pass; then gradients with respect to `inputs`, one target per node at a time."""
        model = self.loaded.model
        if not keeps_logits(model) or model.get_output_embeddings() is None:
            with torch.enable_grad():
                values = self.rows.values(self._logits(inputs))

            def through_model(carried: Sequence[int], again: bool) -> Tensor:
                chosen = torch.tensor(carried, device=values.device)[:, None]
                wanted = (torch.arange(values.shape[1], device=values.device) == chosen).to(values.dtype)
                return torch.autograd.grad(values, inputs, grad_outputs=wanted, retain_graph=again)[0]

            return through_model

        with torch.enable_grad(), split_at_head(self.loaded) as split:
            total = self.rows.values(self._logits(inputs)).sum()
            # each row of hidden states feeds only one target, so one backward through the head serves them all
            (at_rows,) = torch.autograd.grad(total, split.leaf)
        owner = torch.tensor(self.rows.owner, device=at_rows.device)

        def from_head(carried: Sequence[int], again: bool) -> Tensor:
            mine = owner == torch.tensor(carried, device=at_rows.device)[:, None]  # [node, row]
            cotangent = at_rows * mine[..., None]
            return torch.autograd.grad(split.hidden, inputs, grad_outputs=cotangent, retain_graph=again)[0]

        return from_head

    def _finite(self, numbers: Tensor) -> Tensor:
        if not torch.isfinite(numbers).all():
            raise NonFiniteError(
                f"{self.loaded.name}: NaN or infinity along the path from baseline to input, computed in "
                f"{self.loaded.dtype}. Load the model with --dtype float32 or bfloat16."
            )
        return numbers


def path_function(
    loaded: LoadedModel, path: Path, targets: Sequence[Target], *, size: ChunkSize, cached: bool = True
) -> PathFunction:
    """Compute once what is the same at every node, if `cached` allows it. Call inside `frozen_eval(model)`."""
    rows = TargetRows.of(targets)
    first = min(int(path.moving.nonzero()[0]), min(rows.positions))
    with exact_products():
        before = path.input[None, :first].to(loaded.dtype)
        prefix = prefix_cache(loaded.model, before, path.ids[:first]) if cached else None
    return PathFunction(
        loaded=loaded,
        path=path,
        rows=rows,
        size=size,
        live=slice(first if prefix is not None else 0, max(rows.positions) + 1),
        prefix=prefix,
    )


class _Split:
    """The hidden states that enter the output head, cut from the graph that computed them."""

    hidden: Tensor
    """With its history: the start of the vector-Jacobian products."""
    leaf: Tensor
    """Without: the end of the head's own gradient."""

    def cut(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.hidden = inputs[0]
        self.leaf = inputs[0].detach().requires_grad_()
        return (self.leaf, *inputs[1:])


@contextmanager
def split_at_head(loaded: LoadedModel) -> Iterator[_Split]:
    """Cut the graph at the input of the output head for the forwards inside; removes the hook afterwards."""
    head = loaded.model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(
            f"{type(loaded.model).__name__} has no named output head, so its logits cannot be traced to positions."
        )
    split = _Split()
    handle = head.register_forward_pre_hook(split.cut)
    try:
        yield split
    finally:
        handle.remove()
