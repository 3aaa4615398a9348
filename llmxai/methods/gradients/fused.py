"""Causal attention with numbers added to the scores of keys, by kernels that never hold all scores.

Query i gives key j < i the score s_ij + l_j, and its own key s_ii: log-presences l fade a token for all that follow,
never for itself. Two forms of it: on CPUs around the kernel of plain causal attention, elsewhere by one more copy of
every key behind a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmxai.models.memory import Saved, Shape

WIDER = 8
"""Channels that are added, of which two are used: kernels want multiples of 8."""
ALIGNED = 8
"""Numbers between the starts of two rows of a mask: a multiple of this."""


def fused_attention(
    query: Float[Tensor, "node head query channel"],
    key: Float[Tensor, "node kv_head key channel"],
    value: Float[Tensor, "node kv_head key value_channel"],
    added: Float[Tensor, "node 1 1 key"],
    scaling: float | None,
) -> Float[Tensor, "node query head value_channel"]:
    """softmax over j <= i of scaling q_i k_j + added_j (j < i), times the values; differentiable in all but `scaling`.

    Keys before the first query are a prefix, which all queries see. float32 or better is within rounding of the plain
    formula; `added` must be finite and at most 0.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    times = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(times, dim=1) for x in (key, value))
    if query.device.type == "cpu":
        found: Tensor = _OnCpu.apply(query, key, value, added, scale)  # type: ignore[no-untyped-call]
    else:
        found = behind_a_mask(query, key, value, added, scale)
    return found.transpose(1, 2).contiguous()


def saved_heads(shape: Shape, *, on_cpu: bool) -> Saved:
    """What a layer saves: queries, keys, values and what comes out; off the CPU, keys and values twice."""
    return Saved(heads=(1 + WIDER / shape.head_dim) * (4 if on_cpu else 6))


class _OnCpu(torch.autograd.Function):
    """PyTorch's causal kernel for CPUs, which also gives the logarithm of what it divides its weights by.

    It gets every query with the keys before it; the query's own key joins afterwards. The backward kernel computes the
    weights again from the divisor that it is given, here that of all keys.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, added: Tensor, scale: float) -> Tensor:
        before, added = key.shape[2] - query.shape[2], added[:, :, 0]
        wide = max(query.shape[-1], value.shape[-1]) + WIDER
        wide_query = _widened(query, (1.0, 1.0), wide)
        wide_key, wide_value = _widened(key, _in_two(added, scale, key.dtype), wide), _widened(value, (), wide)
        own = _own_scores(query, key[:, :, before:], scale)
        found = []
        for queries, keys, causal in _blocks(before, query.shape[2]):
            part, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                wide_query[:, :, queries], wide_key[:, :, keys], wide_value[:, :, keys], 0.0, causal, scale=scale
            )
            found.append((queries, part, log))
        divisor = own.clone()
        for queries, _, log in found:
            divisor[:, :, queries] = torch.logaddexp(divisor[:, :, queries], log)
        out = wide_value[:, :, before:] * _share(own, divisor, query.dtype)
        for queries, part, log in found:
            out[:, :, queries] += part * _share(log, divisor[:, :, queries], query.dtype)
        ctx.save_for_backward(wide_query, wide_key, wide_value, out, divisor)
        ctx.channels, ctx.scale, ctx.wide = (query.shape[-1], value.shape[-1]), scale, added.dtype
        return out[..., : value.shape[-1]]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        query, key, value, out, divisor = ctx.saved_tensors
        (channels, value_channels), scale = ctx.channels, ctx.scale
        before = key.shape[2] - query.shape[2]
        gradient = _widened(gradients[0], (), out.shape[-1])
        own_key, own_value = key[:, :, before:, :channels], value[:, :, before:]
        of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, key, value))
        for queries, keys, causal in _blocks(before, query.shape[2]):
            given = [x[:, :, queries] for x in (gradient, query)]
            given += [key[:, :, keys], value[:, :, keys], out[:, :, queries], divisor[:, :, queries]]
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *given, 0.0, causal, scale=scale
            )
            for whole, place, part in zip((of_query, of_key, of_value), (queries, keys, keys), parts, strict=True):
                whole[:, :, place] += part
        of_added = (of_key[..., channels].to(ctx.wide) / scale).sum(dim=1)[:, None, None]
        of_query, of_key = of_query[..., :channels], of_key[..., :channels]
        share = _share(_own_scores(query[..., :channels], own_key, scale), divisor, query.dtype)
        slope = scale * share * (gradient * (own_value - out)).sum(dim=-1, keepdim=True)
        of_query += slope * own_key
        of_key[:, :, before:] += slope * query[..., :channels]
        of_value[:, :, before:] += share * gradient
        return of_query, of_key, of_value[..., :value_channels], of_added, None


def _blocks(before: int, queries: int) -> Iterator[tuple[slice, slice, bool]]:
    """Queries, keys, and whether that is causal: a prefix, which all queries see, and the keys before each query."""
    if before:
        yield slice(None), slice(before), False
    if queries > 1:
        yield slice(1, None), slice(before, before + queries - 1), True


def _share(log: Tensor, divisor: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(log) / exp(divisor) for every channel."""
    return (log - divisor).exp().to(dtype)[..., None]


def _own_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """s_ii, in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    return scale * (query * key).sum(dim=-1, dtype=wide)


def _in_two(added: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The number that a score of `added` needs in a channel of the keys, and what bfloat16 or TF32 would round off."""
    number = added / scale
    rest = number.detach() - number.detach().to(torch.bfloat16).to(number.dtype)
    return (number - rest).to(dtype), rest.to(dtype)


def _widened(x: Tensor, channels: Sequence[float | Tensor], wide: int) -> Tensor:
    """`x` with further channels, the rest of them 0, contiguous."""
    filled = x.new_zeros(*x.shape[:-1], wide)
    filled[..., : x.shape[-1]] = x
    for number, channel in enumerate(channels, start=x.shape[-1]):
        filled[..., number] = channel
    return filled


def behind_a_mask(query: Tensor, key: Tensor, value: Tensor, added: Tensor, scale: float) -> Tensor:
    """The same by any kernel that takes a mask: `added` is a channel of the keys, and meets ones in the queries.

    Every query's own key comes a second time, without `added`. So the mask is the same for all, and needs no gradient.
    """
    queries, keys, one = query.shape[2], key.shape[2], query.new_ones(1)
    wide = max(query.shape[-1], value.shape[-1]) + WIDER

    def widened(x: Tensor, *channels: Tensor) -> Tensor:
        parts = [x, *(channel.to(x.dtype).expand(*x.shape[:-1], 1) for channel in channels)]
        filled = torch.cat(parts, dim=-1)
        return nn.functional.pad(filled, (0, wide - filled.shape[-1]))

    number, rest = _in_two(added.transpose(2, 3), scale, added.dtype)
    own = slice(keys - queries, None)
    both = torch.cat([widened(key, number, rest), widened(key)[:, :, own]], dim=2)
    wide_value = widened(value)
    found = nn.functional.scaled_dot_product_attention(
        widened(query, one, one),
        both,
        torch.cat([wide_value, wide_value[:, :, own]], dim=2),
        attn_mask=_behind_and_itself(queries, keys, dtype=query.dtype, device=query.device),
        scale=scale,
    )
    return found[..., : value.shape[-1]]


_masks: dict[tuple[torch.device, torch.dtype], Float[Tensor, "1 1 query key"]] = {}
"""The last one of each device."""


def _behind_and_itself(
    queries: int, keys: int, *, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "1 1 query key"]:
    """0 for every key behind a query, and its own, which comes once more at the end; -infinity for all others.

    Made once for all layers, as kernels take it: SDPA makes numbers of booleans, and pads rows that are no multiple of
    `ALIGNED` long, again in every layer, and the graph keeps them all.
    """
    known = _masks.get((device, dtype))
    if known is not None and known.shape[2:] == (queries, keys + queries):
        return known
    _masks.pop((device, dtype), None)
    behind = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries - 1)
    seen = torch.cat([behind, torch.eye(queries, dtype=torch.bool, device=device)], dim=1)
    width = seen.shape[1]
    rows = torch.full((queries, width + -width % ALIGNED), -torch.inf, dtype=dtype, device=device)
    return _masks.setdefault((device, dtype), rows[:, :width].masked_fill_(seen, 0)[None, None])


def forget_masks() -> None:
    """Free the masks that layers shared."""
    _masks.clear()
