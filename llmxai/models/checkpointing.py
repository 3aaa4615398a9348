"""Layers that compute their activations again in the backward pass, and a heap that gives their memory back."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.checkpoint import set_checkpoint_early_stop
from transformers import PreTrainedModel

from llmxai.models.adapters import layer_stacks

M_MMAP_THRESHOLD = -3
"""Option of mallopt(3): larger blocks are mapped individually and returned to the kernel when freed."""
AT_FIRST = 128 * 2**10
"""The threshold of a new process; it stays fixed inside `freed_blocks_go_back`."""
AT_MOST = 32 * 2**20
"""The threshold to which glibc itself rises when large blocks are freed."""


@contextmanager
def freed_blocks_go_back() -> Iterator[None]:
    """Inside this context, glibc returns freed blocks of 128 KiB or more to the kernel.

    Otherwise it keeps blocks of up to 32 MiB in its heap, small objects settle between them, and the next large block
    finds no room. Gradient checkpointing allocates and frees the same blocks layer by layer; the process then grew to
    four times the memory in use (docs/models.md). Without glibc, this does nothing. Afterwards the threshold is 32 MiB,
    the end of glibc's own rule.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_THRESHOLD, AT_FIRST)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, AT_MOST)


@contextmanager
def checkpointed(model: PreTrainedModel) -> Iterator[None]:
    """Inside this context, layers keep only their input and recompute activations in the backward pass, one by one.

    Chen et al. 2016 (https://arxiv.org/abs/1604.06174). Layers whose weights Accelerate loads temporarily load them
    again, so the graph does not keep them alive. Pass no key-value cache: it would grow twice.
    """
    layers = [layer for stack in layer_stacks(model) for layer in stack]
    own = [layer.__dict__.get("forward") for layer in layers]  # Accelerate's hooks put one there
    try:
        for layer in layers:
            layer.forward = partial(recompute, layer.forward, use_reentrant=False, preserve_rng_state=False)
        # stopping early would skip the hook that frees an offloaded weight: one matrix per layer would stay in memory
        offloaded = any(parameter.device.type == "meta" for parameter in model.parameters())
        with freed_blocks_go_back(), set_checkpoint_early_stop(not offloaded):
            yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward
