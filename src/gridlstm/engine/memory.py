"""Large buffers of the engine, which later calls reuse.

A training step fills hundreds of megabytes. By default, glibc returns large freed tensors to the system, which zeroes
their pages on the next use: that is 10 to 30 % of a step in a script that does not change the allocator.
"""

import ctypes
import mmap
import sys
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

HUGE_PAGE = 1 << 21


@dataclass(frozen=True)
class Region:
    """Memory of the process, from a multiple of HUGE_PAGE on."""

    memory: mmap.mmap
    start: int
    size: int


class Pool:
    """Regions for tensors; a region that no tensor holds any more is reused.

    A region serves any tensor that fits into it. Unused regions are kept, up to as many bytes as tensors have held at
    once, so that batches of different lengths do not collect memory. Linux may take their pages when memory is short.
    """

    def __init__(self) -> None:
        self._unused: list[Region] = []  # the least recently used first
        # A tensor may be freed in any thread and at any allocation by Python, even while the lock is held.
        self._returned = deque[Region]()
        self._lock = threading.Lock()
        self._held = 0  # bytes
        self._most_held = 0

    def take(self, size: int) -> ctypes.Array[ctypes.c_char]:
        """Return an array of this many bytes. Its region is reused after the array is freed."""
        with self._lock:
            while self._returned:
                region = self._returned.popleft()
                self._held -= region.size
                self._unused.append(region)
            fitting = [region for region in self._unused if region.size >= size]
            region = min(fitting, key=lambda region: region.size) if fitting else _map(size)
            if fitting:
                self._unused.remove(region)
            self._held += region.size
            self._most_held = max(self._held, self._most_held)
            while sum(region.size for region in self._unused) > self._most_held:
                del self._unused[0]
        array = (ctypes.c_char * size).from_buffer(region.memory, region.start)
        weakref.finalize(array, self._give_back, region).atexit = False
        return array

    def _give_back(self, region: Region) -> None:
        region.memory.madvise(mmap.MADV_FREE, region.start, region.size)
        self._returned.append(region)


def _map(size: int) -> Region:
    """Return new memory of at least this size, in huge pages if Linux provides them."""
    size = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
    with suppress(OSError):  # a kernel built without huge pages, which are advice only
        memory.madvise(mmap.MADV_HUGEPAGE, start, size)
    return Region(memory, start, size)


_pool = Pool()


def empty(*shape: int, like: Tensor) -> Tensor:
    """Return ``like.new_empty(shape)``; on a CPU under Linux, a large tensor reuses the memory of earlier ones."""
    numbers = prod(shape)
    size = numbers * like.element_size()
    if size < HUGE_PAGE or like.device.type != "cpu" or sys.platform != "linux":
        return like.new_empty(shape)
    # The tensor's storage, which all its views share, holds the array.
    return torch.frombuffer(_pool.take(size), dtype=like.dtype, count=numbers).view(shape)
