"""Every layer's attention in blocks of queries, never as a [layer, head, query, key] tensor.

A forward pass runs with our own attention function behind transformers' `AttentionInterface`. It keeps each layer's
queries, keys (after rotary embedding) and values, no more than a cache holds, and calls the architecture's own eager
function block by block, so mask, window, scale, soft cap and sinks are those of the architecture. The keys that each
query sees are stored as intervals, over which uniform attention spreads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from llmxai.errors import UnsupportedModelError
from llmxai.models import LoadedModel, ModelKind, layer_stacks, transformer_depth
from llmxai.models.embedding import input_device, on_device
from llmxai.models.families import SCORE_BIAS, rollout_refusal
from llmxai.models.forward import configured, first_of, frozen_eval, own_configurations, own_errors, run
from llmxai.models.memory import free_memory

ROWS = 256
"""Queries of a mask that are examined together."""


@dataclass(frozen=True)
class Visible:
    """Query i sees the keys [first[i], end[i]). int64, on the CPU."""

    first: Int[Tensor, " query"]
    end: Int[Tensor, " query"]

    def keys(self, queries: slice) -> slice:
        """The keys that any of the queries sees."""
        return slice(int(self.first[queries].min()), int(self.end[queries].max()))

    def without_sink(self) -> Visible:
        """The same with key 0 hidden from every query that sees another key."""
        alone = self.end <= 1
        return Visible(first=torch.where(alone, self.first, self.first.clamp(min=1)), end=self.end)

    def spread(self, mass: Float[Tensor, "target query"]) -> Float[Tensor, "target key"]:
        """`mass` times the uniform attention matrix: each query's mass in equal parts on all keys that it sees.

        The sum over the queries that see a key is a cumulative sum of differences, so no matrix is formed.
        """
        share = mass / (self.end - self.first).to(mass.dtype)
        steps = torch.zeros_like(mass)
        steps.index_add_(1, self.end - 1, share)
        inner = self.first > 0
        steps.index_add_(1, self.first[inner] - 1, -share[:, inner])
        return steps.flip(1).cumsum(1).flip(1).clamp(min=0)


def visible_in_map(weights: Float[Tensor, "1 head query key"]) -> Visible:
    """From complete attention weights: causal if no query attends to a later key."""
    return visible_keys(None, weights.shape[2], keys=weights.shape[3] if weights.triu(1).any() else None)


def visible_keys(mask: Tensor | None, n: int, *, keys: int | None = None) -> Visible:
    """From a mask [1, head, query, key], boolean or additive; None means causal, or all `keys` visible.

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
            "A layer's mask hides keys between those that a query sees; attention rollout supports only causal and "
            "windowed masks."
        )
    return Visible(first=torch.cat(firsts), end=torch.cat(ends))


CAPTURE = "llmxai_capture"
BLOCK_NUMBERS = 2**24
"""Attention weights (heads x queries x keys) that exist at once on a CPU: 64 MiB in float32, before copies."""
GPU_NUMBERS = 2**26
"""... and at most on a GPU, where few large products are faster; fewer if less than `COPIES` of them are free."""
COPIES = 64
"""Bytes per weight: a dozen copies in float32, of which half exist for a moment, and room for the rest."""
EAGER_LIMIT = 4096
"""Longest sequence for architectures outside the interface, whose [head, query, key] maps exist one layer at a time."""


@dataclass(frozen=True)
class AttentionCall:
    """The inputs of one layer's attention: enough to recompute its weights for any block of queries."""

    module: nn.Module
    query: Float[Tensor, "1 head query channel"]
    key: Float[Tensor, "1 kv_head key channel"]
    value: Float[Tensor, "1 kv_head key value_channel"]
    mask: Tensor | None
    """[1, 1, query, key], True where a query sees a key (additive if the model makes its own mask)."""
    options: Mapping[str, Any]
    visible: Visible

    whole: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    """The model's own fused kernel, if it has one: the output without the weights."""

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Blocks of queries, and the keys that any of them sees; the fewer keys, the more queries."""
        n, heads, numbers = self.query.shape[2], self.query.shape[1], block_numbers(self.query.device)
        first = 0
        while first < n:
            least = self.visible.keys(slice(first, first + 1))
            size = min(n - first, max(1, numbers // (heads * (least.stop - least.start))))
            keys = self.visible.keys(slice(first, first + size))
            size = min(size, max(1, numbers // (heads * (keys.stop - keys.start))))
            queries = slice(first, first + size)
            yield queries, self.visible.keys(queries)
            first += size

    def seen(self, queries: slice, keys: slice) -> Tensor | None:
        """The part of the mask, boolean or additive; None if every query sees every key."""
        if self.mask is not None:
            return self.mask[:, :, queries, keys]
        first, end = self.visible.first[queries, None], self.visible.end[queries, None]
        if bool((first <= keys.start).all() and (end >= keys.stop).all()):
            return None
        device = self.query.device
        key = torch.arange(keys.start, keys.stop, device=device)
        return ((key >= on_device(first, device)) & (key < on_device(end, device)))[None, None]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: slice, keys: slice
    ) -> tuple[Float[Tensor, "1 query head value_channel"], Float[Tensor, "1 head query key"]]:
        """The architecture's own (output, weights) for tensors already cut to `queries` and `keys`."""
        mask = self.seen(queries, keys)
        if mask is not None and mask.dtype == torch.bool:
            least = torch.finfo(query.dtype).min
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill_(~mask, least)
        options = dict(self.options)
        if isinstance(bias := options.get(SCORE_BIAS), Tensor):
            options[SCORE_BIAS] = bias[:, :, queries, keys]
        with own_errors(self.module, what="attend eagerly"):
            output, weights = own_attention(self.module)(self.module, query, key, value, mask, **options)
        return output, weights

    def weights(self, queries: slice, keys: slice) -> Float[Tensor, "head query key"]:
        """Attention weights in float32 or wider; one column of the values is enough to call the eager function."""
        with torch.no_grad():
            cut = self.query[:, :, queries], self.key[:, :, keys], self.value[:, :, keys, :1]
            return at_least_float32(self.attend(*cut, queries, keys)[1][0])

    def output(self) -> Float[Tensor, "1 query head value_channel"]:
        """The output of the layer's attention, without a graph."""
        with torch.no_grad():
            if self.whole is not None:
                return self.whole(self.module, self.query, self.key, self.value, self.mask, **self.options)[0]
            return torch.cat(
                [
                    self.attend(self.query[:, :, q], self.key[:, :, k], self.value[:, :, k], q, k)[0]
                    for q, k in self.blocks()
                ],
                dim=1,
            )


def block_numbers(device: torch.device) -> int:
    """How many attention weights may exist at once on a device."""
    if device.type == "cpu":
        return BLOCK_NUMBERS
    return max(1, min(GPU_NUMBERS, free_memory(device) // COPIES))


Fuse = Callable[[Float[Tensor, "head query key"], AttentionCall | None, slice], Float[Tensor, "query key"]]
"""From the weights of all heads, their layer (None outside the interface) and the range of keys to one map."""

Watch = Callable[[AttentionCall, Tensor], None]
"""Called with each layer's attention and its output, before the rest of the layer runs."""


def mean_of_heads(weights: Tensor, _call: AttentionCall | None, _keys: slice) -> Tensor:
    return weights.mean(dim=0)


@dataclass(frozen=True)
class LayerAttention:
    """One layer's attention with its heads fused, computed block by block on demand."""

    blocks: Callable[[], Iterator[tuple[slice, slice]]]
    """Blocks of queries, and the keys that any of them sees."""
    rows: Callable[[slice, slice], Float[Tensor, "query key"]]
    visible: Visible


def capture_attention(
    loaded: LoadedModel, ids: Sequence[int], *, fuse: Fuse = mean_of_heads, watch: Watch | None = None
) -> list[LayerAttention]:
    """Every layer's attention over `ids`, first layer first.

    Raises UnsupportedModelError if a layer has no softmax attention (linear attention, state space), if tokens reach
    each other by anything else than attention (convolutions), and for an architecture outside transformers' attention
    interface (BLOOM, Falcon) above `EAGER_LIMIT` tokens or if calls must be watched.
    """
    if (refusal := rollout_refusal(loaded.model.config)) is not None:
        raise UnsupportedModelError(f"{loaded.name}: {refusal}")
    model = loaded.model
    if loaded.kind is ModelKind.ENCODER_DECODER:
        raise UnsupportedModelError(
            f"{loaded.name}: an encoder-decoder has three kinds of attention, and this variant is defined only for a "
            f"single stack of layers. Use attention_rollout or gradient_weighted_rollout, which cover both stacks."
        )
    with frozen_eval(model), torch.no_grad():
        require_attention_alone(loaded, ids)
        if through_interface(model):
            calls: list[AttentionCall] = []

            def note(call: AttentionCall) -> Tensor:
                output = call.output()
                if watch is not None:
                    watch(call, output)
                # one column of the values is enough for the weights
                calls.append(call if watch is not None else replace(call, value=call.value[..., :1].clone()))
                return output

            with attending(model, note):
                read(model, ids)
            for call in calls:
                require_tokens(model, (call.query.shape[2], call.key.shape[2]), len(ids))
            layers = [_fused(call, fuse) for call in calls]
        elif watch is not None:
            raise UnsupportedModelError(
                f"{loaded.name}: {type(model).__name__} does not attend through transformers' attention interface, so "
                f"its values cannot be read. Choose a method that reads only attention weights."
            )
        else:
            require_eager_length(loaded, len(ids))
            layers = _eager_layers(model, ids, fuse)
    require_every_layer(loaded, len(layers))
    return layers


def through_interface(model: PreTrainedModel) -> bool:
    """Whether the architecture attends through transformers' `AttentionInterface`."""
    return bool(getattr(model, "_supports_attention_backend", False))


def require_every_layer(loaded: LoadedModel, found: int) -> None:
    """Raise UnsupportedModelError if fewer layers gave their attention than the model has."""
    depth = transformer_depth(loaded.model)
    if found != depth:
        raise UnsupportedModelError(
            f"{loaded.name}: {depth - found} of its {depth} layers give no attention weights (linear attention, state "
            f"space, or an implementation that does not return them), so attention rollout is not defined for it."
        )


def require_eager_length(loaded: LoadedModel, n: int) -> None:
    """Raise UnsupportedModelError if complete maps would not fit."""
    if n > EAGER_LIMIT:
        raise UnsupportedModelError(
            f"{loaded.name}: {type(loaded.model).__name__} does not attend through transformers' attention interface, "
            f"so its maps are computed whole, which is limited to {EAGER_LIMIT} tokens; there are {n}. "
            f"Shorten the prompt."
        )


def widest(device: torch.device) -> torch.dtype:
    """float64 where the device has it: a rollout multiplies as many matrices as there are layers."""
    return torch.float32 if device.type == "mps" else torch.float64


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _fused(call: AttentionCall, fuse: Fuse) -> LayerAttention:
    return LayerAttention(
        blocks=call.blocks,
        rows=lambda queries, keys: fuse(call.weights(queries, keys), call, keys),
        visible=call.visible,
    )


def _eager_layers(model: PreTrainedModel, ids: Sequence[int], fuse: Fuse) -> list[LayerAttention]:
    whole = slice(0, len(ids))
    layers: list[LayerAttention] = []

    def take(weights: Tensor) -> None:
        require_map(model, weights, len(ids))
        fused = fuse(at_least_float32(weights[0].detach()), None, whole)
        layers.append(
            LayerAttention(
                blocks=lambda: iter([(whole, whole)]), rows=lambda q, k: fused[q, k], visible=visible_in_map(weights)
            )
        )

    with eager_maps(model, take):
        read(model, ids)
    return layers


PROBE = 8
"""Tokens on which `require_attention_alone` tries a model."""


def require_attention_alone(loaded: LoadedModel, ids: Sequence[int]) -> None:
    """Raise UnsupportedModelError if a token's states depend on another token by more than softmax attention.

    Convolutions over several tokens and recurrent layers are found by their modules. Where attention goes through the
    interface, it is replaced by zeros, and another first token must leave the last layer's other positions as they are.
    Call inside `frozen_eval(model)`.
    """
    model = loaded.model
    stacks = layer_stacks(model)
    parts = [part for stack in stacks for part in stack.modules()]
    mixing = sorted({type(part).__name__ for part in parts if _mixes_tokens(part)})
    if not mixing and through_interface(model) and len(stacks) == 1 and len(ids) > 1:
        others = ids[1:PROBE][::-1]  # no beginning of the text, in which an evaluation may move embeddings
        first, second = (_without_attention(model, [start, *others]) for start in (ids[0], ids[1]))
        same = torch.allclose(first[0, 1:].float(), second[0, 1:].float(), rtol=1e-3, atol=1e-5, equal_nan=True)
        mixing = [] if same else ["something else in its layers"]
    if mixing:
        raise UnsupportedModelError(
            f"{loaded.name}: in {type(model).__name__}, tokens reach each other not only by attention but by "
            f"{' and '.join(mixing)} as well, so attention rollout is not defined for it; integrated gradients are."
        )


def _mixes_tokens(part: nn.Module) -> bool:
    kernel = getattr(part, "kernel_size", ())
    convolves = isinstance(part, nn.modules.conv._ConvNd | nn.Unfold) and max(np.atleast_1d(kernel)) > 1
    return bool(convolves) or isinstance(part, nn.RNNBase)


def _without_attention(model: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, "1 seq hidden"]:
    """The last layer's output with all attention replaced by zeros."""
    found: list[Tensor] = []
    handle = layer_stacks(model)[0][-1].register_forward_hook(lambda *given: found.append(first_of(given[2]).detach()))
    try:
        with attending(model, lambda call: call.query.new_zeros(_output_shape(call))):
            read(model, ids)
    finally:
        handle.remove()
    return found[0] if len(found) == 1 and found[0].dim() == 3 else torch.zeros(1, len(ids), 1)


def _output_shape(call: AttentionCall) -> tuple[int, ...]:
    batch, heads, n, _ = call.query.shape
    return batch, n, heads, call.value.shape[-1]


def require_tokens(model: PreTrainedModel, shape: tuple[int, int], n: int) -> None:
    """Raise UnsupportedModelError unless an attention has one query and one key per token."""
    if shape != (n, n):
        raise UnsupportedModelError(
            f"{type(model).__name__} attends from {shape[0]} queries to {shape[1]} keys, and there are {n} tokens: it "
            "pools them, or adds some of its own. So attention rollout is not defined for it; integrated gradients "
            "are."
        )


def require_map(model: PreTrainedModel, weights: Tensor, n: int) -> None:
    """Raise UnsupportedModelError unless these are weights [1, head, query, key] whose rows sum to at most 1."""
    whole = weights.dim() == 4 and len(weights) == 1
    require_tokens(model, (weights.shape[2], weights.shape[3]) if whole else (0, 0), n)
    sums = weights.detach().float().sum(dim=-1)
    if not (sums.max() < 1.01 and weights.min() >= 0):
        raise UnsupportedModelError(
            f"{type(model).__name__} returns attention whose rows are no shares of 1 (up to {float(sums.max()):.3g}), "
            "so attention rollout is not defined for it; integrated gradients are."
        )


def read(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """One forward pass for its side effects, with as few logits as the model allows."""
    row = torch.tensor([list(ids)], device=input_device(model))
    run(model, input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, logits_to_keep=1)


@contextmanager
def attending(
    model: PreTrainedModel, output: Callable[[AttentionCall], Float[Tensor, "1 query head channel"]]
) -> Iterator[None]:
    """Let `model` attend through `output`; registry and model are restored afterwards."""
    seen: dict[tuple[int, bool, int, int], tuple[Tensor | None, Visible]] = {}  # layers share their masks

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        causal = getattr(module, "is_causal", True)
        case = (id(attention_mask), causal, query.shape[2], key.shape[2])
        known = seen.get(case)
        if known is None:  # Accelerate gives every layer a copy of its own, which nothing here must keep alive
            alike = (one for other, one in seen.items() if other[1:] == case[1:] and _same_mask(one[0], attention_mask))
            known = next(alike, None)
        if known is None:
            keys = None if causal else key.shape[2]
            known = seen[case] = attention_mask, visible_keys(attention_mask, query.shape[2], keys=keys)
        attention_mask, visible = known
        return output(AttentionCall(module, query, key, value, attention_mask, options, visible, whole)), None

    fused = model.config._attn_implementation == "sdpa"
    whole = sdpa_attention_forward if fused else None
    AttentionInterface.register(CAPTURE, attend)
    AttentionMaskInterface.register(CAPTURE, sdpa_mask if fused else _whole_mask)
    try:
        with own_configurations(model):
            model.set_attn_implementation(CAPTURE)
            yield
    finally:
        AttentionInterface._global_mapping.pop(CAPTURE, None)
        AttentionMaskInterface._global_mapping.pop(CAPTURE, None)


def _same_mask(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)


def _whole_mask(*arguments: Any, **options: Any) -> Tensor | None:
    """A boolean mask, a quarter of the size of the eager one; it becomes floating point one block at a time."""
    mask: Tensor | None = sdpa_mask(*arguments, **{**options, "allow_is_causal_skip": False})
    return mask


@contextmanager
def eager_maps(model: PreTrainedModel, take: Callable[[Tensor], None]) -> Iterator[None]:
    """Run eagerly and pass each layer's [1, head, query, key] weights to `take` as they are computed.

    Only for models that read their configuration at every forward (BLOOM, Falcon): they refuse
    `set_attn_implementation`, and their attention returns its weights.
    """

    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
            take(output[1])

    handles = [module.register_forward_hook(look) for module in attention_modules(model)]
    try:
        with configured(model, "eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The model's attentions by transformers' naming, in the order of the modules."""
    return [module for module in model.modules() if type(module).__name__.endswith("Attention")]


def own_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention function of the architecture that `module` belongs to."""
    found: Callable[..., tuple[Tensor, Tensor]] = sys.modules[type(module).__module__].eager_attention_forward
    return found
