"""Decoder layers compiled one by one, where the work saved is longer than the compilation.

All layers of a stack have the same code, so one compilation serves them all, every copy of the model and every later
explanation: torch keys compiled code by the code and the shapes, not by the module. Few shapes are compiled: lengths
are rounded up to a multiple, numbers of nodes down to `NODES` (a fixed number of nodes is split into equal chunks),
and chunks are padded to them. What a decoder computes
for a position does not depend on later ones, nor on other rows of the batch, so padding changes nothing but rounding.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from bisect import bisect_right
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch._functorch import config as functorch
from transformers import PreTrainedModel

from llmxai.models.families import ModelKind
from llmxai.models.forward import is_out_of_memory, transformer_layers
from llmxai.models.loading import LoadedModel
from llmxai.models.precision import products_allowed
from llmxai.models.speed import traffic_seconds

BACKEND = "inductor"


COMPILATION = {"cuda": 10.0, "cpu": 15.0}
"""Seconds that a new shape takes, by device: 6 to 10 on an H100 (benchmarks/GPU.md), 12 to 14 on two cores."""
SAVED = {2: 0.5}
"""Share that compiled layers save of what is not products, by bytes per number. On an H100 0.59 at 1B and 0.46 at 8B
parameters, on a CPU with AMX 0.7. In float32 it is a third, and a whole explanation took longer."""
MULTIPLE = {"cuda": 32, "cpu": 8}
"""Lengths are rounded up to a multiple of this, by device."""
NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
FULL = 0.85
"""A chunk with a smaller share of the nodes runs uncompiled, without padding."""
SHAPES = 64
"""Compiled shapes that torch keeps at most; its own limit is 8."""

_done: set[Hashable] = set()
_spent: dict[Hashable, float] = {}
"""Estimated seconds of uncompiled work that is not products, by shape, of all explanations so far."""
_broken: list[str] = []
"""Why compilation failed once; then nothing is compiled any more."""


@dataclass(frozen=True)
class Padding:
    """The shape to which chunks are padded."""

    nodes: int
    tokens: int


def padding_for(
    loaded: LoadedModel, *, tokens: int, most: int, pairs: int, dtype: torch.dtype, known: int | None = None
) -> Padding | None:
    """The shape to compile for `pairs` backward passes of a node of `tokens` tokens; None if it does not pay.

    `most`: the nodes that fit into memory. If it is `known` how many there are, they are split into equal chunks. A
    shape is compiled once what it would have saved, in this work and all before it, is longer than its compilation.
    """
    saved = SAVED.get(dtype.itemsize)
    if saved is None or not can_compile(loaded):
        return None
    device = loaded.model.device
    multiple = MULTIPLE[device.type]
    length = -(-tokens // multiple) * multiple
    fitting = max(1, most * tokens // length)
    nodes = NODES[bisect_right(NODES, fitting) - 1] if known is None else -(-known // -(-known // fitting))
    layer = transformer_layers(loaded.model)[0]
    weights = tuple((name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters())
    shape = (type(layer), weights, device, dtype, products_allowed(), nodes, length)
    if shape not in _done:
        seconds = pairs * traffic_seconds(loaded.model, tokens=length, device=device, dtype=dtype)
        _spent[shape] = _spent.get(shape, 0.0) + seconds
        if saved * _spent[shape] < COMPILATION[device.type]:
            return None
        _done.add(shape)
    return Padding(nodes=nodes, tokens=length)


def can_compile(loaded: LoadedModel) -> bool:
    """Whether the layers are plain ones of a decoder on a single device, computing with their own weights.

    On a CPU, the code generator also needs a C++ compiler.
    """
    kind = loaded.model.device.type
    if kind not in COMPILATION or _broken or (kind == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None):
        return False
    several = len(set(getattr(loaded.model, "hf_device_map", {}).values())) > 1
    plain = loaded.quantization is None and loaded.computing is None and not several
    return plain and loaded.kind is ModelKind.CAUSAL and not getattr(loaded.model, "_is_stateful", False)


@contextmanager
def layers_compiled(model: PreTrainedModel) -> Iterator[None]:
    """Inside, every layer runs compiled for the shapes that come; afterwards the model is as before.

    The compiled graph keeps its buffers, so that several backward passes can start from one forward pass.
    """
    layers = list(transformer_layers(model))
    before = [layer.__dict__.get("_compiled_call_impl") for layer in layers]
    try:
        for layer in layers:
            layer.compile(dynamic=False, backend=BACKEND)
        limits: dict[str, Any] = {"recompile_limit": SHAPES, "accumulated_recompile_limit": 4 * SHAPES}
        with dynamo.patch(limits), functorch.patch(donated_buffer=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's advice on the code of transformers
            yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.__dict__.pop("_compiled_call_impl", None)
            if own is not None:
                layer._compiled_call_impl = own


def compilation_failed(error: Exception) -> bool:
    """Whether the error is the compiler's; then it is not used again in this process."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error  # as `own_errors` raises it
    if is_out_of_memory(error) or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return False
    _broken.append(f"{type(error).__name__}: {error}")
    logging.getLogger(__name__).warning("layers run uncompiled, since compilation failed: %s", _broken[0][:300])
    return True
