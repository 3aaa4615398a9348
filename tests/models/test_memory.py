"""Where memory runs out, less goes through the model at once; freed memory goes back while layers are checkpointed."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny import make_model

from llmxai.models import checkpointing
from llmxai.models.memory import ChunkSize, within_memory

SHARES = """
import ctypes, runpy, sys

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
libc.mallinfo2.restype = type("Info", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in names]})

def share(size=4 * 2**20):
    before = libc.mallinfo2().hblkhd  # bytes in blocks that were mapped one by one
    blocks = [libc.malloc(size) for _ in range(16)]
    grown = libc.mallinfo2().hblkhd - before
    for block in blocks:
        libc.free(block)
    return round(grown / (16 * size), 2)

with runpy.run_path(sys.argv[1])["freed_blocks_go_back"]():
    print(share(), share(), share())
print(share())
"""
"""Shares of 4 MiB blocks that are mapped one by one, in a process with a fresh heap: what is free there goes first."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told so")
def test_blocks_are_mapped_one_by_one_inside_and_not_afterwards() -> None:
    command = [sys.executable, "-c", SHARES, str(checkpointing.__file__)]
    inside, after = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [float(share) for share in inside.split()] == pytest.approx([1, 1, 1], abs=0.05)  # freeing changes nothing
    assert float(after) == 0


def test_checkpointing_does_so_and_an_exception_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    @contextmanager
    def recorded() -> Iterator[None]:
        steps.append("in")
        try:
            yield
        finally:
            steps.append("out")

    monkeypatch.setattr(checkpointing, "freed_blocks_go_back", recorded)
    with checkpointing.checkpointed(make_model("llama")):
        assert steps == ["in"]
    assert steps == ["in", "out"]
    with pytest.raises(RuntimeError, match="stop"), checkpointing.checkpointed(make_model("llama")):
        raise RuntimeError("stop")
    assert steps == ["in", "out"] * 2


NO_MEMORY = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free."),
    "without a message": torch.OutOfMemoryError(),
    "Python": MemoryError(),
    "NumPy": MemoryError("Unable to allocate 8.00 EiB for an array with shape (1152921504606846976,)"),
    "CUDA, older": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "a call of CUDA": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "HIP": RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    "XPU": RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 GB)"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a view."),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: Error code 12"
    ),
    "CPU, Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:73] DefaultCPUAllocator: not enough memory: 8 bytes"),
}
OTHER = {
    "shapes": RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    "devices": RuntimeError("Expected all tensors to be on the same device"),
    "memory of another kind": RuntimeError("the model's memory of this word is out of date"),
    "without a message": RuntimeError(),
    "another type": ValueError("CUDA out of memory."),
}


def failing(error: Exception) -> Callable[[], str]:
    def work() -> str:
        raise error

    return work


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_the_chunk_is_halved_where_memory_runs_out(error: Exception) -> None:
    size = ChunkSize(1000)
    assert within_memory(failing(error), size=size, each=100, items=8) is None
    assert (size.tokens, size.halvings) == (500, 1)  # 5 items of 100 tokens, fewer than 8
    assert within_memory(lambda: "done", size=size, each=100, items=5) == "done"
    assert within_memory(failing(error), size=size, each=100, items=2) is None
    assert (size.tokens, size.halvings) == (125, 3)
    with pytest.raises(type(error)):
        within_memory(failing(error), size=size, each=100, items=1)


@pytest.mark.parametrize("error", OTHER.values(), ids=OTHER)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    size = ChunkSize(1000)
    with pytest.raises(type(error)):
        within_memory(failing(error), size=size, each=100, items=8)
    assert (size.tokens, size.halvings) == (1000, 0)


def test_an_allocation_that_fails_says_so() -> None:
    """What PyTorch says on this machine, whatever the text."""
    size = ChunkSize(1000)
    assert within_memory(lambda: torch.empty(2**50), size=size, each=100, items=8) is None
    assert size.halvings == 1
