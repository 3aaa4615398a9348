"""Gradient-weighted attention rollout, one layer and one target at a time.

R <- R + A_bar R with A_bar = mean over heads of max(0, dF/dA x A), starting with R = I (Chefer, Gur & Wolf 2021,
https://arxiv.org/abs/2103.15679, eq. 5 and 6 for self-attention). Here F is the log-prob of the generated token and the
row is that of its predicting position; the paper reads the row of a class token.

One forward pass records the inputs of each layer. From the top down, each layer then runs once more, with a graph, and
carries every target's cotangent from its output to its input. Its attention is cut out of that graph and computed in
blocks of queries, so the weights and their gradient exist for one layer, one block and one target at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.methods.attention.capture import (
    AttentionCall,
    Visible,
    at_least_float32,
    attending,
    eager_maps,
    require_attention_alone,
    require_eager_length,
    require_every_layer,
    require_map,
    through_interface,
    visible_in_map,
    widest,
)
from llmxai.methods.attention.dilution import shares
from llmxai.methods.attention.encoder_decoder import weighted_steps
from llmxai.methods.attention.rollout import attention_scores, initial_rows
from llmxai.methods.registry import method
from llmxai.methods.targets import Target, TargetRows, kinds, targets_of
from llmxai.models import LoadedModel, ModelKind, embed, forward_logits, frozen_eval, transformer_layers
from llmxai.models.families import rollout_refusal
from llmxai.models.forward import first_of, own_errors, with_first
from llmxai.names import Progress, quiet
from llmxai.types import Generation, Scores

GROUP_NUMBERS = 2**27
"""Most numbers in the cotangents (target x seq x hidden) that descend together; more targets go in several groups."""


@dataclass(frozen=True)
class _LayerCall:
    """The arguments of one call of a decoder layer."""

    layer: nn.Module
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def hidden(self) -> Float[Tensor, "1 seq hidden"]:
        return torch.as_tensor(self.arguments[0] if self.arguments else self.options["hidden_states"])

    def again(self, hidden: Float[Tensor, "1 seq hidden"]) -> Float[Tensor, "1 seq hidden"]:
        """The layer's output for `hidden`, all other arguments unchanged."""
        if self.arguments:
            return first_of(self.layer(hidden, *self.arguments[1:], **self.options))
        return first_of(self.layer(**{**self.options, "hidden_states": hidden}))


@dataclass
class _Taken:
    """The attention of the layer that is running."""

    cut: list[tuple[AttentionCall, Tensor]] = field(default_factory=list)
    """Each call, and its output as a leaf of the graph."""
    maps: list[Tensor] = field(default_factory=list)
    """For architectures outside the attention interface: the weights, in the graph."""
    graph: bool = False
    """Whether the part after the attention will be differentiated; before that, attentions are only counted."""
    counted: int = 0

    def clear(self) -> None:
        self.cut.clear()
        self.maps.clear()

    def output(self, call: AttentionCall) -> Tensor:
        leaf = call.output().requires_grad_(self.graph)
        if self.graph:
            self.cut.append((call, leaf))
        else:
            self.counted += 1
        return leaf

    def weights(self, weights: Tensor) -> None:
        if self.graph:
            self.maps.append(weights)
        else:
            self.counted += 1


@dataclass(frozen=True)
class Descent:
    """Created by `descending`; use it inside that context."""

    calls: tuple[_LayerCall, ...]
    """One per layer, first layer first."""
    targets: tuple[Target, ...]
    top: Float[Tensor, "part seq hidden"]
    """Gradients with respect to the last layer's output: one for the sum of all targets, or one per target."""
    shared: bool
    """Whether one gradient serves all targets, because no two targets share a position."""
    taken: _Taken

    def cotangents(self, targets: Sequence[int]) -> list[Float[Tensor, "1 seq hidden"]]:
        """Gradients with respect to the last layer's output."""
        like = self.calls[-1].hidden
        if not self.shared:
            return [self.top[t : t + 1].to(like.device) for t in targets]
        found = []
        for t in targets:
            found.append(torch.zeros_like(like))
            places = list(self.targets[t].positions)
            found[-1][0, places] = self.top[0, places].to(like.device)
        return found

    def carry(
        self, layer: int, mass: Float[Tensor, "target seq"], cotangents: list[Tensor]
    ) -> tuple[Float[Tensor, "target seq"], Visible]:
        """Each target's `mass` times its own mean over heads of max(0, gradient x attention) of `layer`, and its mask.

        `cotangents` are replaced in place: from gradients at the layer's output to gradients at its input.
        """
        self.taken.clear()
        with torch.enable_grad():
            hidden = self.calls[layer].hidden.detach().requires_grad_()
            output = self.calls[layer].again(hidden)
        rows, mass = mass, mass.to(output.device, widest(output.device))
        moved = torch.zeros_like(mass)
        if self.taken.maps:
            weights, visible = self.taken.maps[0], visible_in_map(self.taken.maps[0])
            for t, cotangent in enumerate(cotangents):
                cotangents[t], gradient = torch.autograd.grad(
                    output, (hidden, weights), cotangent.to(output.device), retain_graph=True
                )
                moved[t] = mass[t] @ _weighted(gradient, weights)
        else:
            ((call, leaf),) = self.taken.cut
            visible = call.visible
            pulled = [
                torch.autograd.grad(output, (hidden, leaf), cotangent.to(output.device), retain_graph=True)
                for cotangent in cotangents
            ]
            inner = _through_attention(call, [at_leaf for _, at_leaf in pulled], mass, moved)
            for t, (past, _) in enumerate(pulled):
                (through,) = torch.autograd.grad(
                    (call.query, call.key, call.value), hidden, inner[t], retain_graph=t < len(pulled) - 1
                )
                cotangents[t] = past + through
        self.taken.clear()
        return moved.to(rows), visible


def _through_attention(
    call: AttentionCall, gradients: Sequence[Tensor], mass: Float[Tensor, "target seq"], moved: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """From gradients at the attention's output to those at query, key and value; accumulates into `moved`."""
    wholes = (call.query, call.key, call.value)
    inner = [
        (torch.zeros_like(call.query), torch.zeros_like(call.key), torch.zeros_like(call.value)) for _ in gradients
    ]
    busy = torch.stack([g[0].flatten(1).any(dim=1) for g in gradients]).cpu()  # [target, query]
    for queries, keys in call.blocks():
        users = busy[:, queries].any(dim=1).nonzero()[:, 0].tolist()
        if not users:
            continue
        places = (queries, keys, keys)
        cut = [x[:, :, place].detach().requires_grad_() for x, place in zip(wholes, places, strict=True)]
        with torch.enable_grad():
            output, weights = call.attend(cut[0], cut[1], cut[2], queries, keys)
        for t in users:
            gradient, *parts = torch.autograd.grad(
                output, (weights, *cut), gradients[t][:, queries], retain_graph=t != users[-1]
            )
            moved[t, keys] += mass[t, queries] @ _weighted(gradient, weights)
            for whole, part, place in zip(inner[t], parts, places, strict=True):
                whole[:, :, place] += part
    return inner


def _weighted(gradient: Tensor, weights: Tensor) -> Float[Tensor, "query key"]:
    product = at_least_float32(gradient.detach()[0]) * weights.detach()[0]
    return product.clamp_(min=0).mean(dim=0).to(widest(product.device))


def require_one_stream(loaded: LoadedModel, leaves: Sequence[Tensor]) -> None:
    """Raise UnsupportedModelError unless the last layer gave one vector per token."""
    if len(leaves) != 1 or leaves[0].dim() != 3:
        raise UnsupportedModelError(
            f"{loaded.name}: the layers of {type(loaded.model).__name__} do not pass one vector per token from each "
            "to the next, so gradients cannot be followed down layer by layer; integrated gradients work."
        )


@contextmanager
def descending(loaded: LoadedModel, generation: Generation, targets: Sequence[Target]) -> Iterator[Descent]:
    """One forward pass; leaving the context restores hooks, attention function and flags.

    Raises UnsupportedModelError for layers without softmax attention, and if the model's layers cannot be identified.
    """
    if (refusal := rollout_refusal(loaded.model.config)) is not None:
        raise UnsupportedModelError(f"{loaded.name}: {refusal}")
    model, taken = loaded.model, _Taken()
    rows = TargetRows.of(targets)
    ids = generation.ids[: max(rows.positions) + 1]
    embeds = embed(model, ids)[None]
    if not through_interface(model):
        require_eager_length(loaded, embeds.shape[1])
    calls: list[_LayerCall] = []
    leaves: list[Tensor] = []
    layers = transformer_layers(model)

    def note(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        calls.append(_LayerCall(layer, arguments, options))

    def cut(_layer: nn.Module, _arguments: object, output: Any) -> Any:
        leaves.append(first_of(output).detach().requires_grad_())
        return with_first(output, leaves[-1])

    own = through_interface(model)

    def keep(weights: Tensor) -> None:
        require_map(model, weights, embeds.shape[1])
        taken.weights(weights)

    with frozen_eval(model), torch.no_grad():
        require_attention_alone(loaded, ids)
    through = attending(model, taken.output) if own else eager_maps(model, keep)
    with frozen_eval(model), torch.no_grad(), through:
        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        handles.append(layers[-1].register_forward_hook(cut))
        try:
            with torch.enable_grad():  # the weights are frozen, so the graph starts at the leaf
                values = rows.values(forward_logits(model, embeds, ids=ids, positions=rows.positions))[0]
                # in a language model, a position feeds only the targets that are predicted there
                shared = loaded.kind is not ModelKind.CLASSIFIER and len(set(rows.positions)) == len(rows.positions)
                parts = [values.sum()] if shared else list(values)
        finally:
            for handle in handles:
                handle.remove()
        require_every_layer(loaded, taken.counted)
        require_one_stream(loaded, leaves)
        taken.graph = True
        top = torch.cat([torch.autograd.grad(part, leaves[0], retain_graph=True)[0] for part in parts])
        yield Descent(tuple(calls), tuple(targets), top, shared, taken)


@method(
    "gradient_weighted_rollout",
    needs={"attentions", "gradients"},
    source="Chefer, Gur & Wolf 2021, https://arxiv.org/abs/2103.15679, eq. 5 and 6",
)
def gradient_weighted_rollout(
    loaded: LoadedModel,
    generation: Generation,
    *,
    targets: Sequence[Target] | None = None,
    progress: Progress = quiet,
) -> Scores:
    """Rollout of attention weighted by its own positive gradient: what raised this token's log-prob (or its lead).

    The initial identity is subtracted (it only says that the predicting position is itself) and each row is scaled to
    sum 1, so `lost_mass` is 0; a row without positive weight is 1 at the predicting position. The null is the same
    recursion with uniform attention. It costs one forward pass, one more of each layer, and one backward per target.

    For an encoder-decoder, the recursion runs over source and answer together, with cross-attention as a block of the
    joint map (the paper's eq. 10 also mixes in the encoder's own R; this does not), and all maps exist at once.

    Raises UnsupportedModelError for layers without softmax attention or layers that cannot be run one by one, and
    NonFiniteError if a gradient is NaN or infinite.
    """
    targets = targets_of(generation, targets)
    start = initial_rows(loaded, generation, targets)
    if loaded.kind is ModelKind.ENCODER_DECODER:
        return _scores(loaded, generation, targets, start, [list(weighted_steps(loaded, generation, targets, start))])
    with descending(loaded, generation, targets) as descent:
        depth, size = len(descent.calls), max(1, GROUP_NUMBERS // descent.calls[-1].hidden.numel())
        downs: list[list[tuple[Tensor, Tensor]]] = []
        for first in range(0, len(targets), size):
            group, done = range(first, min(first + size, len(targets))), first * depth
            downs.append([])
            with own_errors(loaded.model, what="be followed down layer by layer"):
                for rows, null in _down(descent, start[group.start : group.stop], group):
                    downs[-1].append((rows, null))
                    done += len(group)
                    progress(done, depth * len(targets))
    return _scores(loaded, generation, targets, start, downs)


def _scores(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    start: Float[Tensor, "target seq"],
    downs: Sequence[Sequence[tuple[Tensor, Tensor]]],
) -> Scores:
    """From the rows, and those of the null, after every layer for every group of targets."""
    if not all(torch.isfinite(down[-1][0]).all() for down in downs):
        raise NonFiniteError(
            f"{loaded.name}: NaN or infinity in the gradients of attention, computed in {loaded.dtype}. Load the model "
            f"with --dtype float32 or bfloat16."
        )
    layers = zip(*downs, strict=True)  # one layer of every group at a time
    sums = ([torch.cat(side) for side in zip(*parts, strict=True)] for parts in layers)
    steps = ((_as_shares(rows, start), _as_shares(null, start)) for rows, null in sums)
    settings = {"target": kinds(targets), "head_fusion": "mean"}
    scores = attention_scores("gradient_weighted_rollout", generation, targets, steps, settings)
    return replace(scores, lost_mass=torch.zeros(len(targets), dtype=scores.values.dtype))


def _down(descent: Descent, start: Float[Tensor, "target seq"], targets: range) -> Iterator[tuple[Tensor, Tensor]]:
    """R's rows and the null's after every layer, top layer first, including the initial identity."""
    rows, null, cotangents = start, start, descent.cotangents(targets)
    for layer in reversed(range(len(descent.calls))):
        moved, visible = descent.carry(layer, rows, cotangents)
        rows, null = rows + moved, null + visible.spread(null)
        yield rows, null


def _as_shares(rows: Float[Tensor, "target seq"], identity: Float[Tensor, "target seq"]) -> Float[Tensor, "target seq"]:
    moved = (rows - identity).clamp(min=0)
    return torch.where(moved.sum(dim=1, keepdim=True) > 0, shares(moved), identity)
