"""Freed memory goes back to the system while layers are checkpointed."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tiny import make_model

from llmxai.models import memory

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
    command = [sys.executable, "-c", SHARES, str(memory.__file__)]
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

    monkeypatch.setattr(memory, "freed_blocks_go_back", recorded)
    with memory.checkpointed(make_model("llama")):
        assert steps == ["in"]
    assert steps == ["in", "out"]
    with pytest.raises(RuntimeError, match="stop"), memory.checkpointed(make_model("llama")):
        raise RuntimeError("stop")
    assert steps == ["in", "out"] * 2
