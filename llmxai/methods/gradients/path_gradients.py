"""F and its gradient along the path: one forward per node for all targets, one backward per target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.methods.features import baseline_embedding, moving_tokens
from llmxai.methods.targets import Target, TargetRows, seen_by
from llmxai.models import LoadedModel, embed, forward_logits, keeps_logits, prefix_cache
from llmxai.models.compiled import FULL, Padding, can_compile, compilation_failed, layers_compiled, padding_for
from llmxai.models.embedding import on_device
from llmxai.models.forward import own_errors
from llmxai.models.memory import ChunkSize, Saved, in_chunks, saved_by, within_memory
from llmxai.models.precision import computing_in, exact_products
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

    def saved(self, model: PreTrainedModel) -> Saved:
        """What attention saves for a backward pass along the path."""

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
        self, gradient: Float[Tensor, "node live *width"], alphas: Float[Tensor, " node"], live: slice
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

    @cached_property
    def delta(self) -> Float[Tensor, "seq hidden"]:
        """input - baseline; 0 for held tokens."""
        return (self.input - self.baseline) * self.moving[:, None]

    def points(self, alphas: Sequence[float], *, live: slice = slice(None)) -> Float[Tensor, "node live hidden"]:
        """x(a) of the live tokens for every a; exactly the input for held tokens, and at a = 1."""
        a = on_device(list(alphas), self.input.device, dtype=self.input.dtype)
        return self.input[live] - (1 - a)[:, None, None] * self.delta[live]

    def attached(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Nothing: the model runs as usual."""
        del model
        return nullcontext()

    def saved(self, model: PreTrainedModel) -> Saved:
        """What the model's own does."""
        return saved_by(model)

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
        places, ids = [position - live.start for position in positions], self.ids[live]
        ids += ids[-1:] * (inputs.shape[1] - len(ids))  # for padding behind them
        return forward_logits(loaded.model, inputs, ids=ids, positions=places, prefix=prefix, source=self.source)

    def slopes(
        self, gradient: Float[Tensor, "node live hidden"], alphas: Float[Tensor, " node"], live: slice
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


Pullback = Callable[[Tensor, bool], Tensor]
"""From (the target of each node, or -1; whether another call follows) to the gradient at the path's inputs."""


ALIKE = 0.8
"""Nodes of one chunk serve at least this share of the targets that its busiest node serves ..."""
LEAST = 4
"""... unless the chunk would shrink below chunk_tokens / LEAST, where matrix products get slow ..."""
LEAST_ON_CPU = 256
"""... or, on a CPU, below so many tokens."""


LONG = 512
"""Tokens from which a short prefix is computed again at every node ..."""
SHORT = 0.1
"""... if it is at most this share of them. Without a cache, the attention kernel knows that the mask is causal: it
skips half of the work, and no layer saves a mask of length x length."""
FIXED = 0.25
"""Share of the tokens before the first moving one up to which layers are compiled, and those tokens computed again."""


@dataclass(frozen=True)
class Node:
    """A point of the path and the targets whose gradient is needed there.

    The nodes of a panel need the same targets; `weight` is that of the node in the panel's sum.
    """

    alpha: float
    targets: tuple[int, ...]
    weight: float = 1.0
    panel: int = 0


Sums = Mapping[tuple[int, int], Float[Tensor, " seq"]]
"""For (panel, target): the sum over the panel's nodes of weight x every token's part of dF/da; float64 on the CPU."""


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
    padding: Padding | None = None
    """The shape for which layers are compiled, if they are."""
    exact: bool = False
    """Whether gradients are computed without TF32 products, even where the process allows them."""

    @property
    def chunk(self) -> int:
        """Nodes that go through the model at once."""
        most = self.size.items(self._length)
        return most if self.padding is None else min(most, self.padding.nodes)

    def values(self, alphas: Sequence[float]) -> Float[Tensor, "node target"]:
        """F at every a, for every target, float64 on the CPU, from forward passes only."""

        @torch.no_grad()
        def of_chunk(chosen: slice) -> Tensor:
            return self.rows.values(self._logits(self._inputs(alphas[chosen])))

        with exact_products(), computing_in(self.loaded):
            found = in_chunks(of_chunk, size=self.size, each=self._length, items=len(alphas))
        return self._finite(found.cpu().double())

    def sums(self, nodes: Sequence[Node], progress: Callable[[int], None] = lambda _done: None) -> Sums:
        """The sums of all panels; nothing leaves the device before the last backward pass.

        Nodes that serve about the same number of targets go through together, and a backward pass carries a different
        target for every node, so few passes are wasted on a pair that is not needed. `progress` gets the number of
        gradients so far.
        """
        with computing_in(self.loaded):
            return self._gathered(self._parts(nodes, progress))

    def _parts(
        self, nodes: Sequence[Node], progress: Callable[[int], None]
    ) -> list[tuple[list[tuple[int, int]], Float[Tensor, "pair live"]]]:
        """What every chunk of nodes adds to the sums."""
        order = sorted(nodes, key=lambda node: -len(node.targets))
        done, parts = 0, []
        while order:
            most = len(order[0].targets)
            alike = sum(len(node.targets) >= ALIKE * most for node in order[: self.chunk])
            size = max(alike, min(self.chunk, self._least))
            chosen = order[:size]
            work = partial(self._sums_of_chunk, chosen, done, progress)
            part = within_memory(work, size=self.size, each=self._length, items=size)
            if part is not None:
                parts.append(part)
                done += sum(len(node.targets) for node in chosen)
                order = order[size:]
        return parts

    @property
    def _least(self) -> int:
        """Nodes of a chunk for whose sake passes are wasted on pairs that are not needed."""
        on_cpu = self.path.input.device.type == "cpu"
        return LEAST_ON_CPU // self._length if on_cpu else self.chunk // LEAST

    @property
    def _length(self) -> int:
        """Tokens of one node."""
        return len(self.path.moving[self.live])

    def _inputs(self, alphas: Sequence[float]) -> Float[Tensor, "node live *width"]:
        return self.path.inputs(self.loaded, alphas, self.live)

    def _logits(self, inputs: Float[Tensor, "node live *width"], *, extra: int = 0) -> Float[Tensor, "node row vocab"]:
        if extra:
            inputs = nn.functional.pad(inputs, (0, 0, 0, extra))
        return self.path.logits(self.loaded, inputs, positions=self.rows.positions, live=self.live, prefix=self.prefix)

    def _sums_of_chunk(
        self, nodes: Sequence[Node], done: int, progress: Callable[[int], None]
    ) -> tuple[list[tuple[int, int]], Float[Tensor, "pair live"]]:
        """(panel, target) of every pair that is needed, and the part of its sum that these nodes give."""
        padding = self.padding
        if padding is not None and FULL * padding.nodes <= len(nodes) and can_compile(self.loaded):
            more = [replace(nodes[-1], targets=(), panel=-1)] * (padding.nodes - len(nodes))
            extra = padding.tokens - self._length
            try:
                with layers_compiled(self.loaded.model):
                    return self._pairs([*nodes, *more], done, progress, extra=extra)
            except Exception as error:
                if not compilation_failed(error):
                    raise
        with own_errors(self.loaded.model, what="be differentiated along this path"):
            return self._pairs(nodes, done, progress)

    def _pairs(
        self, nodes: Sequence[Node], done: int, progress: Callable[[int], None], *, extra: int = 0
    ) -> tuple[list[tuple[int, int]], Float[Tensor, "pair live"]]:
        """The same, with `extra` tokens after the last."""
        inputs = self._inputs([node.alpha for node in nodes]).requires_grad_()
        numbers = partial(on_device, device=self.path.input.device)
        alphas = numbers([node.alpha for node in nodes], dtype=self.path.input.dtype)
        panels = {node.panel: node.targets for node in nodes if node.targets}
        weights = [[node.weight * (node.panel == panel) for node in nodes] for panel in panels]
        passes = max(map(len, panels.values()))
        carried = [[node.targets[k] if k < len(node.targets) else -1 for node in nodes] for k in range(passes)]
        slopes: list[Tensor] = []
        with exact_products() if self.exact else nullcontext():
            pull = self._pullback(inputs, extra=extra)
            for k, chosen in enumerate(numbers(carried)):
                slopes.append(self.path.slopes(pull(chosen, k < passes - 1), alphas, self.live))
                done += sum(t >= 0 for t in carried[k])
                progress(done)
        with exact_products():  # in a fixed order, so that a GPU gives the same bits again
            sums = torch.einsum("pn,knl->pkl", numbers(weights, dtype=alphas.dtype), torch.stack(slopes))
        pairs = [(panel, t) for panel, targets in panels.items() for t in targets]
        needed = [p * passes + k for p, targets in enumerate(panels.values()) for k in range(len(targets))]
        return pairs, sums.flatten(0, 1)[numbers(needed)]

    def _gathered(self, parts: Sequence[tuple[Sequence[tuple[int, int]], Tensor]]) -> Sums:
        """All parts in one transfer; a panel whose nodes went through in several chunks has several."""
        live = self._finite(torch.cat([part for _, part in parts]).cpu().double())
        rows = torch.zeros(len(live), len(self.path.moving), dtype=torch.float64)
        rows[:, self.live] = live
        found: dict[tuple[int, int], Tensor] = {}
        for pair, row in zip((pair for pairs, _ in parts for pair in pairs), rows, strict=True):
            found[pair] = found[pair] + row if pair in found else row
        return found

    def _pullback(self, inputs: Float[Tensor, "node live *width"], *, extra: int) -> Pullback:
        """One forward pass; then gradients with respect to `inputs`, one target per node at a time."""
        model = self.loaded.model
        if not keeps_logits(model) or model.get_output_embeddings() is None:
            with torch.enable_grad():
                values = self.rows.values(self._logits(inputs, extra=extra))

            numbers = torch.arange(values.shape[1], device=values.device)

            def through_model(carried: Tensor, again: bool) -> Tensor:
                wanted = (numbers == carried.to(values.device)[:, None]).to(values.dtype)
                return torch.autograd.grad(values, inputs, grad_outputs=wanted, retain_graph=again)[0]

            return through_model

        with torch.enable_grad(), split_at_head(self.loaded) as split:
            total = self.rows.values(self._logits(inputs, extra=extra)).sum()
            # each row of hidden states feeds only one target, so one backward through the head serves them all
            (at_rows,) = torch.autograd.grad(total, split.leaf)
        owner = on_device(self.rows.owner, at_rows.device)

        def from_head(carried: Tensor, again: bool) -> Tensor:
            mine = owner == carried.to(owner.device)[:, None]  # [node, row]
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
    loaded: LoadedModel,
    path: Path,
    targets: Sequence[Target],
    *,
    size: ChunkSize,
    cached: bool = True,
    pairs: int = 0,
    nodes: int | None = None,
) -> PathFunction:
    """Compute once what is the same at every node, if `cached` allows it. Call inside `frozen_eval(model)`.

    `pairs`: about how many gradients will be needed, if layers may be compiled for them; `nodes`: at how many points,
    if that is known.
    """
    rows = TargetRows.of(targets)
    first, end = min(int(path.moving.nonzero()[0]), min(rows.positions)), max(rows.positions) + 1
    padding = None
    if pairs and isinstance(path, EmbeddingPath) and first <= FIXED * end:
        most = size.items(end)
        padding = padding_for(loaded, tokens=end, most=most, pairs=pairs, dtype=loaded.dtype, known=nodes)
    prefix, short = None, end >= LONG and first <= SHORT * end
    if cached and padding is None and not short:  # the index of a cache would make every compiled layer another code
        with exact_products(), computing_in(loaded):
            before = path.input[None, :first].to(loaded.dtype)
            prefix = prefix_cache(loaded.model, before, path.ids[:first])
    return PathFunction(
        loaded=loaded,
        path=path,
        rows=rows,
        size=size,
        live=slice(first if prefix is not None else 0, end),
        prefix=prefix,
        padding=padding,
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
