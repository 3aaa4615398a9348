"""How much memory an explanation takes, estimated from the configuration in advance, and how to stay within it.

The weights are frozen while gradients are computed, so a linear layer keeps nothing for the backward pass. Numbers kept
per token and layer: the inputs of the norms (two or four x hidden; an RMSNorm always computes in float32), queries,
keys, values and output of the attention (4 x heads x head_dim), and the tensors of the activation function and the
gate (1 to 6 x intermediate). tests/models/test_planner.py compares this with what autograd keeps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmxai.errors import InsufficientMemoryError, UnsupportedModelError
from llmxai.models.adapters import layer_stacks
from llmxai.models.embedding import device_of, input_device
from llmxai.models.families import KEPT_BY_ACTIVATION, family_of, field_of, in_windows
from llmxai.models.forward import is_out_of_memory
from llmxai.settings import CHUNK_TOKENS

CPU = torch.device("cpu")
GIB = 2**30
SHARE = 0.8
"""Share of the free memory that a plan may use; the rest covers what the estimate does not see."""
BLOCK_NUMBERS = 2**24
"""Most attention weights of all heads that rollout holds at once; four copies of them exist for a moment."""
USEFUL_NUMBERS = 2**26
"""Numbers (tokens x hidden) that keep a GPU busy: 32,768 tokens of width 2,048; more are hardly faster."""
USEFUL_ON_CPU = {4: CHUNK_TOKENS, 2: 4 * CHUNK_TOKENS}
"""Tokens at once on a CPU, by bytes per number: with AMX, products of 1,200 rows take twice the time of 2,400."""
HEAP = 1.2
"""Growth of the process on a CPU for each byte of a graph: glibc keeps freed blocks, and smaller ones settle there. The
same work grew it by 2.0 or by 2.4 GB, so this is about the middle, and what `SHARE` leaves covers the upper end."""
BITS = {"4bit": 4.5, "8bit": 8.5}
"""Bits per weight of the quantised layers, including their scales."""


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated bytes for one explanation, and the settings that they hold for."""

    weights: int
    """0 if the weights are already in memory."""
    working: int
    """Peak of gradients or rollout, on top of the weights."""
    free: int
    chunk_tokens: int
    checkpoint: bool
    """Whether layers recompute their activations in the backward pass instead of keeping them."""

    @property
    def total(self) -> int:
        return self.weights + self.working

    @property
    def fits(self) -> bool:
        return self.total <= SHARE * self.free

    def sentence(self, *, of: str = "the weights") -> str:
        """The plan in words, for a log or a page; `of`: what its `weights` are."""
        kept = "recomputed in the backward pass" if self.checkpoint else "kept for the backward pass"
        weights = f"{self.weights / GIB:.2f} GiB for {of} and " if self.weights else ""
        return (
            f"{weights}{self.working / GIB:.2f} GiB of working memory, {self.free / GIB:.2f} GiB free; "
            f"{self.chunk_tokens} tokens at once, activations {kept}"
        )


@dataclass(frozen=True)
class Saved:
    """What the attention of one layer saves for the backward pass."""

    maps: int | float = 0
    """Number of [head, query, key] in float32; none with a fused kernel."""
    heads: float = 4.0
    """Number of [head, token, channel]: queries, keys, values and what comes out."""


SDPA = Saved()


@dataclass(frozen=True)
class Shape:
    """The figures of a configuration that determine memory; `intermediate` counts the experts a token goes to.

    A figure that the configuration does not name is guessed: a plan is an estimate, not a reason to fail.
    """

    depth: int
    hidden: int
    heads: int
    head_dim: int
    intermediate: int
    kept: int
    """Number of tensors of width `intermediate` that the activation function and the gate keep."""
    norms: int
    rms: bool
    vocabulary: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        text = config.get_text_config()
        hidden = _first(text, "hidden_size", "d_model", "n_embd") or 1024
        heads = _first(text, "num_attention_heads", "n_heads", "n_head") or 1
        wide = _first(text, "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner") or 4 * hidden
        experts = _first(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk") or 0
        if experts:
            wide = experts * (_first(text, "moe_intermediate_size") or wide)
        return cls(
            depth=_depth(config),
            hidden=hidden,
            heads=heads,
            head_dim=_first(text, "head_dim") or hidden // heads,
            intermediate=wide,
            kept=family_of(config).experts_keep or _kept_by_activation(text),
            norms=family_of(config).norms,
            rms=getattr(text, "rms_norm_eps", None) is not None,
            vocabulary=int(text.vocab_size),
        )


def kept_per_token(shape: Shape, *, itemsize: int, heads: float = SDPA.heads) -> int:
    """Bytes that one layer keeps per token for the backward pass; `heads` as in `Saved`."""
    norm = itemsize + 4 if shape.rms and itemsize < 4 else itemsize
    of_heads = round(heads * shape.heads * shape.head_dim)
    return shape.norms * shape.hidden * norm + (of_heads + shape.kept * shape.intermediate) * itemsize


def _depth(config: PreTrainedConfig) -> int:
    """Number of layers; a decoder layer that also attends to an encoder counts as one and a half."""
    layers = int(config.get_text_config().num_hidden_layers)
    if not getattr(config, "is_encoder_decoder", False):
        return layers
    return layers + math.ceil(1.5 * (_first(config, "num_decoder_layers", "decoder_layers") or layers))


def _kept_by_activation(config: PreTrainedConfig) -> int:
    name = _first_text(config, "hidden_activation", "hidden_act", "activation_function", "activation")
    return KEPT_BY_ACTIVATION.get(name or "", 1)


def working_bytes(
    shape: Shape,
    *,
    tokens: int,
    targets: int,
    itemsize: int,
    chunk_tokens: int,
    checkpoint: bool,
    saved: Saved = SDPA,
    heap: bool = False,
    rollout: bool = True,
) -> int:
    """Peak memory: the graph of one chunk with its logits, or the tensors that rollout reads from all layers.

    `heap`: whether blocks come from glibc, as on a CPU; gradient checkpointing lets it give them back. `rollout`:
    whether rollout is computed, too.
    """
    nodes = max(1, chunk_tokens // tokens)
    scores = round(saved.maps * nodes * shape.heads * tokens * tokens * max(itemsize, 4))
    layer = nodes * tokens * kept_per_token(shape, itemsize=itemsize, heads=saved.heads) + scores
    stream = nodes * tokens * shape.hidden * itemsize
    graph = stream * shape.depth + 2 * layer if checkpoint else layer * (shape.depth + 1)
    if heap and not checkpoint:
        graph = round(HEAP * graph)
    gradients = graph + 3 * nodes * targets * shape.vocabulary * max(itemsize, 4)
    if not rollout:
        return gradients
    block = 4 * min(shape.heads * tokens * tokens, BLOCK_NUMBERS) * max(itemsize, 4)
    return max(gradients, 3 * shape.depth * tokens * shape.heads * shape.head_dim * itemsize + block)


def working_of(model: PreTrainedModel, *, tokens: int, targets: int, chunk_tokens: int, checkpoint: bool) -> int:
    """`working_bytes` of a loaded model."""
    return working_bytes(
        Shape.of(model.config),
        tokens=tokens,
        targets=targets,
        itemsize=model.dtype.itemsize,
        chunk_tokens=chunk_tokens,
        checkpoint=checkpoint,
        saved=saved_by(model),
        heap=input_device(model).type == "cpu",
    )


def saved_by(model: PreTrainedModel) -> Saved:
    """What the model's own attention saves: scores and weights, too, where it is eager.

    A fused kernel gets the mask of a window as numbers, which the graph of every such layer keeps, one for all heads.
    """
    eager = 2 if model.config._attn_implementation == "eager" else 0
    return Saved(maps=family_of(model.config).own_maps or eager or _windowed(model) / Shape.of(model.config).heads)


def _windowed(model: PreTrainedModel) -> float:
    """The share of the layers that attend within a window."""
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return [*kinds].count("sliding_attention") / len(kinds)
    return float(in_windows(text))


def useful_tokens(config: PreTrainedConfig, *, device: torch.device, itemsize: int) -> int:
    """How many tokens at once are worth their memory on a device."""
    if device.type == "cpu":
        return USEFUL_ON_CPU.get(itemsize, CHUNK_TOKENS)
    return max(CHUNK_TOKENS, USEFUL_NUMBERS // Shape.of(config).hidden)


def plan_memory(
    config: PreTrainedConfig,
    *,
    tokens: int,
    targets: int,
    dtype: torch.dtype,
    free: int,
    device: torch.device = CPU,
    weights: int = 0,
    saved: Saved = SDPA,
    checkpoint: bool | None = None,
    offloaded: bool = False,
    casts: tuple[int, int] = (0, 0),
) -> MemoryPlan:
    """The fastest settings that fit into SHARE of `free`: as many nodes at once as are useful and fit, none of them
    checkpointed; else checkpointed; else the least.

    `tokens` counts prompt and answer, `targets` the answer. `weights` are bytes still to be read. `offloaded` layers
    are checkpointed unless the caller says otherwise: a graph would keep their weights alive. `casts`: bytes of weights
    that it keeps in another dtype, of all layers and of the largest. Whether the plan fits is for the caller to ask
    (`require_fits`).
    """
    shape = Shape.of(config)

    def plan(nodes: int, checkpoint: bool) -> MemoryPlan:
        working = working_bytes(
            shape,
            tokens=tokens,
            targets=targets,
            itemsize=dtype.itemsize,
            chunk_tokens=nodes * tokens,
            checkpoint=checkpoint,
            saved=saved,
            heap=device.type == "cpu",
        )
        working += casts[checkpoint]
        return MemoryPlan(weights, working, free, nodes * tokens if nodes < most else max(useful, tokens), checkpoint)

    useful = useful_tokens(config, device=device, itemsize=dtype.itemsize)
    most = max(1, useful // tokens)
    choices = (checkpoint,) if checkpoint is not None else (True,) if offloaded else (False, True)
    for choice in choices:
        # what nodes need grows with their number
        fitting = bisect_left(range(1, most + 1), True, key=lambda nodes: not plan(nodes, choice).fits)
        if fitting:
            return plan(fitting, choice)
    return plan(1, choices[-1])


def plan_for(
    model: PreTrainedModel,
    *,
    tokens: int,
    targets: int,
    dtype: torch.dtype | None = None,
    saved: Saved | None = None,
    checkpoint: bool | None = None,
    computing: torch.dtype | None = None,
) -> MemoryPlan:
    """The plan for a model whose weights are in memory, on whatever devices its layers lie.

    `saved`: what attention saves, if not what the model's own does. `computing`: as in `LoadedModel`.
    """
    where = Counter(device_of(layer) or model.device for layer in _layers(model) or [model])
    places = set(getattr(model, "hf_device_map", {}).values())
    accelerators = {device: share for device, share in where.items() if device.type not in ("cpu", "meta")}
    away = "disk" in places or bool(accelerators and places & {"cpu", torch.device("cpu")})
    if accelerators:  # each holds the activations of its own layers
        free = min(free_memory(device) * sum(where.values()) // own for device, own in accelerators.items())
    else:
        free = free_memory(torch.device("cpu"))
    dtype = dtype or model.dtype
    return plan_memory(
        model.config,
        tokens=tokens,
        targets=targets,
        dtype=dtype,
        weights=_largest_layer(model) if away else 0,
        free=free,
        saved=saved or saved_by(model),
        device=next(iter(accelerators or where)),
        checkpoint=checkpoint,
        offloaded=away,
        casts=_casts(model, computing),
    )


def forward_tokens(model: PreTrainedModel, *, tokens: int, targets: int) -> int:
    """How many tokens go through the model at once without gradients: what fits with them fits without."""
    if input_device(model).type == "cpu":
        return CHUNK_TOKENS
    return plan_for(model, tokens=tokens, targets=targets).chunk_tokens


def _largest_layer(model: PreTrainedModel) -> int:
    """Bytes of the weights of the largest layer; only one offloaded layer is in memory at a time."""
    return max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in _layers(model))


def _casts(model: PreTrainedModel, computing: torch.dtype | None) -> tuple[int, int]:
    """Bytes of the experts of all layers, and of the largest, in the dtype in which modules compute if they cast.

    A linear layer makes its weights again for gradients; the cast weights of experts stay in the graph.
    """
    if computing is None:
        return (0, 0)
    experts = [[p for p in layer.parameters() if p.dim() > 2 and p.dtype != computing] for layer in _layers(model)]
    sizes = [computing.itemsize * sum(p.numel() for p in own) for own in experts]
    return sum(sizes), max(sizes, default=0)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """All layers of all stacks; none if they cannot be identified, which is no reason not to plan."""
    try:
        return [layer for stack in layer_stacks(model) for layer in stack]
    except UnsupportedModelError:
        return []


def require_fits(plan: MemoryPlan, *, name: str, tokens: int, dtype: torch.dtype) -> None:
    """Raise InsufficientMemoryError, with suggested fixes, if even the smallest setting does not fit."""
    if plan.fits:
        return
    width = str(dtype).removeprefix("torch.")
    cheaper = " a smaller dtype (--dtype bfloat16)," if dtype.itemsize > 2 else ""
    raise InsufficientMemoryError(
        f"{name}: explaining {tokens} tokens in {width} needs about {plan.total / GIB:.2f} GiB even one node at a time "
        f"with checkpointing, and at most {SHARE:.0%} of the {plan.free / GIB:.2f} GiB that are free may be used. "
        f"Shorten the prompt or the answer, or use{cheaper} --quantize 4bit, a smaller model, or a larger machine."
    )


def weight_bytes(model: PreTrainedModel, *, dtype: torch.dtype, quantize: str | None) -> tuple[int, float]:
    """Bytes of the weights as loaded, and the share of them that bitsandbytes can quantise.

    `quantize`: 4bit or 8bit, with the method's name before it or not.
    """
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    smaller = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    rest = model.num_parameters() - smaller
    bits = BITS.get((quantize or "").split(" ")[-1], 8.0 * dtype.itemsize)
    return int(rest * dtype.itemsize + smaller * bits / 8), smaller / (rest + smaller)


def free_memory(device: torch.device | None = None) -> int:
    """Free bytes on a device, with what torch keeps for reuse; on the CPU, at most what a container's limit leaves."""
    if device is not None and device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return min([int(psutil.virtual_memory().available), *_container_limits()])


def _container_limits(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What a control group (v2) leaves of its limit: one number, or none without a limit."""
    try:
        limit = (root / "memory.max").read_text().strip()
        used = int((root / "memory.current").read_text())
        cache = next(
            (
                int(line.split()[1])
                for line in (root / "memory.stat").read_text().splitlines()
                if "inactive_file" in line
            ),
            0,
        )
    except (OSError, ValueError):
        return []
    return [max(0, int(limit) - used + cache)] if limit.isdigit() else []


def _first(config: PreTrainedConfig, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := field_of(config, name), int)), None)


def _first_text(config: PreTrainedConfig, *names: str) -> str | None:
    return next((value for name in names if isinstance(value := getattr(config, name, None), str)), None)


T = TypeVar("T")


@dataclass
class ChunkSize:
    """How many tokens (nodes x live tokens) may go through the model at once, which bounds the memory.

    Halved if memory runs out anyway.
    """

    tokens: int
    halvings: int = 0

    def items(self, each: int) -> int:
        """How many items of `each` tokens go through the model at once: at least one."""
        return max(1, self.tokens // each)

    def halve(self) -> None:
        self.tokens //= 2
        self.halvings += 1


def within_memory(work: Callable[[], T], *, size: ChunkSize, each: int, items: int) -> T | None:
    """The result of `work`; if memory runs out, None, with the chunk halved.

    An item is `each` tokens; if a single item does not fit, the error is raised.
    """
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or items == 1:
            raise
    while size.items(each) >= items:
        size.halve()
    return None


def in_chunks(
    work: Callable[[slice], Float[Tensor, "item ..."]], *, size: ChunkSize, each: int, items: int
) -> Float[Tensor, "item ..."]:
    """`work` of all items, as many at a time as fit; an item is `each` tokens, and there is at least one."""
    parts: list[Tensor] = []
    done = 0
    while done < items:
        chosen = slice(done, min(done + size.items(each), items))
        part = within_memory(partial(work, chosen), size=size, each=each, items=chosen.stop - done)
        if part is not None:
            parts.append(part)
            done = chosen.stop
    return torch.cat(parts)
