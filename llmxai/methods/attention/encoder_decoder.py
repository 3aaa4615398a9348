"""Rollout across an encoder and a decoder, over one axis: the source's tokens, then the decoder's.

A decoder layer attends to the earlier decoder tokens and then to the source, an encoder layer to the source. Over the
joint axis each attention is one block of a matrix that is the identity elsewhere, so a rollout is the product of
r I + (1 - r) A over all of them, as for one stack (Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928). The
decoder's share on the source continues through the encoder, as in Ferrando et al. 2022
(https://arxiv.org/abs/2205.11631).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmxai.errors import UnsupportedModelError
from llmxai.methods.attention.capture import AttentionCall, Fuse, at_least_float32, attending
from llmxai.methods.targets import Target, TargetRows
from llmxai.models import LoadedModel, embed, forward_logits, frozen_eval, layer_stacks
from llmxai.types import Generation

MAP_NUMBERS = 2**28
"""Most attention weights, over all layers, whose gradients are computed together: 1 GiB in float32."""

Rows = Float[Tensor, "target seq"]
Carry = Callable[[Tensor, AttentionCall, int], Tensor]
"""From mass on the queries [target, query], the attention and its number (in execution order) to mass on the keys."""


@dataclass(frozen=True)
class TwoSides:
    """The attentions of one forward pass in execution order: the encoder's, then alternately self and cross."""

    calls: tuple[AttentionCall, ...]
    encoder: int
    """How many of them are the encoder's: one per layer."""
    source: int

    def down(self) -> Iterator[tuple[int, slice, slice, bool]]:
        """(number of an attention, range of its queries, of its keys, whether its layer ends there), top first."""
        own, given = slice(self.source, None), slice(0, self.source)
        for number in reversed(range(self.encoder, len(self.calls))):
            cross = (number - self.encoder) % 2 == 1
            yield number, own, given if cross else own, not cross
        for number in reversed(range(self.encoder)):
            yield number, given, given, True

    def arrived(self, rows: Rows, number: int, queries: slice, keys: slice, carry: Carry) -> Rows:
        """The part of `rows` that the attention carries from its queries to its keys; 0 elsewhere."""
        found = torch.zeros_like(rows)
        found[:, keys] = carry(rows[:, queries], self.calls[number], number)
        return found


def rollout_steps(
    loaded: LoadedModel, generation: Generation, targets: Sequence[Target], start: Rows, *, residual: float, fuse: Fuse
) -> Iterator[tuple[Rows, Rows]]:
    """The rows over source and earlier answer, and the null's, after every layer, top first.

    Each of a decoder layer's two attentions keeps `residual`.
    """

    def attend(mass: Tensor, call: AttentionCall, _number: int) -> Tensor:
        moved = mass.new_zeros(len(mass), call.key.shape[2])
        for queries, keys in call.blocks():
            moved[:, keys] += mass[:, queries] @ fuse(call.weights(queries, keys), call, keys).double().cpu()
        return moved

    with frozen_eval(loaded.model), torch.no_grad():
        sides, _ = _capture(loaded, generation, targets, AttentionCall.output)
    rows = null = start
    for number, queries, keys, ends in sides.down():
        new = [(1 - residual) * sides.arrived(rows, number, queries, keys, attend)]
        new.append((1 - residual) * sides.arrived(null, number, queries, keys, _uniform))
        for old, moved in zip((rows, null), new, strict=True):
            moved += old
            moved[:, queries] -= (1 - residual) * old[:, queries]
        rows, null = new
        if ends:
            yield rows, null


def weighted_steps(
    loaded: LoadedModel, generation: Generation, targets: Sequence[Target], start: Rows
) -> Iterator[tuple[Rows, Rows]]:
    """R's rows and the null's after every layer, top first: R <- R + A_bar R over the joined axis.

    A_bar is the mean over heads of max(0, dF/dA x A), separately for each target. Raises UnsupportedModelError if the
    maps of all layers hold too many numbers.
    """
    weights: list[Tensor] = []

    def with_weights(call: AttentionCall) -> Tensor:
        whole = slice(0, call.query.shape[2]), slice(0, call.key.shape[2])
        output, own = call.attend(call.query, call.key, call.value, *whole)
        weights.append(own)
        if sum(map(Tensor.numel, weights)) > MAP_NUMBERS:
            raise UnsupportedModelError(
                f"{loaded.name}: the attention maps of {len(generation.ids)} tokens hold more than {MAP_NUMBERS} "
                f"numbers, and an encoder-decoder needs the gradients of all of them at once. Shorten the source or "
                f"the answer."
            )
        return output

    with frozen_eval(loaded.model), torch.enable_grad():
        sides, values = _capture(loaded, generation, targets, with_weights)
    raised: list[list[Tensor]] = []
    for value in values:
        gradients = torch.autograd.grad(value, weights, retain_graph=True)
        products = [at_least_float32((g * w.detach())[0]) for g, w in zip(gradients, weights, strict=True)]
        raised.append([product.clamp(min=0).mean(dim=0).double().cpu() for product in products])

    def attend(mass: Tensor, _call: AttentionCall, number: int) -> Tensor:
        return torch.stack([row @ own[number] for row, own in zip(mass, raised, strict=True)])

    rows = null = start
    for number, queries, keys, ends in sides.down():
        rows = rows + sides.arrived(rows, number, queries, keys, attend)
        null = null + sides.arrived(null, number, queries, keys, _uniform)
        if ends:
            yield rows, null


def _uniform(mass: Tensor, call: AttentionCall, _number: int) -> Tensor:
    """Every query's mass in equal parts on all keys that it sees; every query sees the whole source."""
    if not getattr(call.module, "is_causal", True):
        return (mass.sum(dim=1, keepdim=True) / call.key.shape[2]).expand(-1, call.key.shape[2])
    return call.visible.spread(mass)


def _capture(
    loaded: LoadedModel,
    generation: Generation,
    targets: Sequence[Target],
    output: Callable[[AttentionCall], Tensor],
) -> tuple[TwoSides, Float[Tensor, " target"]]:
    """One forward pass with every attention computed by `output`, and F of every target."""
    model, calls = loaded.model, []
    rows = TargetRows.of(targets)

    def note(call: AttentionCall) -> Tensor:
        calls.append(call)
        return output(call)

    with attending(model, note):
        ids, source = generation.ids[: max(rows.positions) + 1], generation.source_len
        embeds = embed(model, ids, source=source)[None]
        # the weights are frozen, so the graph starts at the embeddings
        embeds.requires_grad_(torch.is_grad_enabled())
        logits = forward_logits(model, embeds, ids=ids, positions=rows.positions, source=source)
    inside = set(model.get_encoder().modules())
    encoder = sum(call.module in inside for call in calls)
    wanted = [len(stack) for stack in layer_stacks(model)]
    if [encoder, len(calls) - encoder] != [wanted[0], 2 * wanted[1]]:
        raise UnsupportedModelError(
            f"{loaded.name}: {encoder} attentions of its encoder and {len(calls) - encoder} of its decoder go through "
            f"transformers' attention interface, and its {wanted[0]} and {wanted[1]} layers have {wanted[0]} and "
            f"{2 * wanted[1]}, so attention rollout is not defined for it."
        )
    return TwoSides(tuple(calls), encoder, generation.source_len), rows.values(logits)[0]
