"""Large buffers of the engine, which later calls use again.

A training step fills hundreds of megabytes. By default, glibc returns large freed tensors to the system, which zeroes
their pages on the next use: that is 10 to 30 % of a step in a script that does not change the allocator.
"""

import ctypes
import mmap
import sys
import weakref
from collections import defaultdict
from math import prod

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21
SIZES = 8
"""Sizes of buffers between one power of two and the next, so that at most an eighth of a buffer is unused."""

_unused: dict[int, list[mmap.mmap]] = defaultdict(list)
"""Buffers of each size that no tensor holds."""


def empty(*shape: int, like: Tensor) -> Tensor:
    """Return ``like.new_empty(shape)``; on a CPU under Linux, a large one takes the memory of an earlier buffer.

    The memory consists of huge pages if Linux provides them. It stays with the process after the tensor is freed, but
    Linux may take it when memory is short.
    """
    numbers = prod(shape)
    size = numbers * like.element_size()
    if size < HUGE_PAGE or like.device.type != "cpu" or sys.platform != "linux":
        return like.new_empty(shape)
    step = max(HUGE_PAGE, (1 << (size.bit_length() - 1)) // SIZES)
    size = -(-size // step) * step
    try:
        region = _unused[size].pop()
    except IndexError:
        region = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(region)) % HUGE_PAGE
    # Advice only: if Linux ignores it, pages stay small.
    region.madvise(mmap.MADV_HUGEPAGE, start, size)
    array = (ctypes.c_char * size).from_buffer(region, start)  # the storage of the tensor and its views holds it
    weakref.finalize(array, _reuse, region, start, size).atexit = False
    return torch.frombuffer(array, dtype=like.dtype, count=numbers).view(shape)


def _reuse(region: mmap.mmap, start: int, size: int) -> None:
    """Keep a buffer that no tensor holds any more for the next one of its size."""
    region.madvise(mmap.MADV_FREE, start, size)
    _unused[size].append(region)
