"""Freed memory goes back to the system while layers are checkpointed."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch
from tiny import make_model

from llmxai.models.allocator import freed_blocks_go_back
from llmxai.models.seams import checkpointed

MIB = 2**20
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told so")


class Mallinfo2(ctypes.Structure):
    """mallinfo2(3) of glibc 2.33 and newer; `hblkhd` counts the bytes in blocks that were mapped one by one."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    ]


def mapped() -> int:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    return int(mallinfo2().hblkhd)


def share_mapped() -> float:
    """Of 64 blocks of 4 MiB that are never touched; what is free in the heap already is used first."""
    before = mapped()
    blocks = [torch.empty(4 * MIB, dtype=torch.uint8) for _ in range(64)]
    grown = mapped() - before
    del blocks
    assert mapped() == before
    return grown / (256 * MIB)


def test_blocks_are_mapped_one_by_one_inside_and_not_afterwards() -> None:
    with freed_blocks_go_back():
        for _ in range(3):  # freeing them would raise the threshold otherwise
            assert share_mapped() > 0.7
    assert share_mapped() == 0


def test_checkpointing_does_so_and_an_exception_ends_it() -> None:
    model = make_model("llama")
    with checkpointed(model):
        assert share_mapped() > 0.7
    with pytest.raises(RuntimeError, match="stop"), checkpointed(model):
        raise RuntimeError("stop")
    assert share_mapped() == 0
