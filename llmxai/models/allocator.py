"""How freed memory goes back to the system, on a CPU with glibc."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

M_MMAP_THRESHOLD = -3
"""Of mallopt(3): blocks of at least so many bytes are taken from the kernel one by one, and given back when freed."""
AT_FIRST = 128 * 2**10
"""The threshold that a process starts with, and that does not rise any more inside."""
AT_MOST = 32 * 2**20
"""What glibc raises it to by itself when large blocks are freed."""


@contextmanager
def freed_blocks_go_back() -> Iterator[None]:
    """Inside, glibc keeps no freed block of 128 KiB or more for itself.

    It would keep those of up to 32 MiB in its heap, small objects would settle between them, and the next large block
    would find no room: gradient checkpointing, which takes and frees the same blocks layer by layer, then grew the
    process to four times what was in use at once (docs/models.md). Elsewhere than on glibc nothing is done. Afterwards
    the threshold is 32 MiB, where glibc's own rule ends.
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
