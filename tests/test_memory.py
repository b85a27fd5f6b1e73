"""Large buffers of the engine are used again, and never while a tensor still holds them."""

import errno
import mmap
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gridlstm.engine import memory
from gridlstm.engine.memory import HUGE_PAGE, empty
from gridlstm.layer import GridLSTM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="buffers are used again under Linux only")

LIKE = torch.empty(0)
ROWS = HUGE_PAGE // 4 // 8
"""Rows of 8 float32 numbers in 2 MB."""


@pytest.fixture(autouse=True)
def no_earlier_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_pool", memory.Pool())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_large_buffer_has_the_shape_and_type_of_new_empty(dtype: torch.dtype) -> None:
    like = torch.empty(0, dtype=dtype)
    buffer, expected = empty(2, 3 * ROWS, 8, like=like), like.new_empty(2, 3 * ROWS, 8)
    assert (buffer.shape, buffer.dtype, buffer.stride()) == (expected.shape, dtype, expected.stride())
    assert buffer.data_ptr() % HUGE_PAGE == 0
    buffer.fill_(2)
    assert buffer.double().sum() == 2 * buffer.numel()


def test_a_linux_without_huge_pages_has_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mapping(mmap.mmap):
        def madvise(self, option: int, *place: int) -> None:
            if option == mmap.MADV_HUGEPAGE:
                raise OSError(errno.EINVAL, "Invalid argument")
            super().madvise(option, *place)

    monkeypatch.setattr(mmap, "mmap", Mapping)
    address = empty(3 * ROWS, 8, like=LIKE).fill_(1).data_ptr()
    assert empty(3 * ROWS, 8, like=LIKE).data_ptr() == address


def test_memory_of_a_freed_buffer_is_used_again() -> None:
    address = empty(3 * ROWS, 8, like=LIKE).data_ptr()
    assert empty(3 * ROWS, 8, like=LIKE).data_ptr() == address
    assert empty(8, ROWS, like=LIKE).data_ptr() == address


def test_a_view_keeps_its_buffer() -> None:
    view = empty(3 * ROWS, 8, like=LIKE).fill_(1)[ROWS:].T
    other = empty(3 * ROWS, 8, like=LIKE).fill_(2)
    assert other.data_ptr() + ROWS * 8 * 4 != view.data_ptr()
    assert (view == 1).all()


def test_a_gradient_keeps_its_buffer_until_it_is_dropped() -> None:
    layer = GridLSTM(8, 300, num_layers=2, tied=True)
    layer(torch.randn(3, 2, 8))[0].sum().backward()
    kept = {name: p.grad for name, p in layer.named_parameters()}
    copies = {name: grad.clone() for name, grad in kept.items() if grad is not None}
    assert max(grad.nbytes for grad in copies.values()) >= HUGE_PAGE
    layer.zero_grad()
    layer(torch.randn(3, 2, 8))[0].sum().backward()
    assert all(torch.equal(copies[name], grad) for name, grad in kept.items() if grad is not None)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the regions that the pool requested from the system."""
    sizes, new = [], memory._map

    def counted(size: int) -> memory.Region:
        sizes.append(size)
        return new(size)

    monkeypatch.setattr(memory, "_map", counted)
    return sizes


def test_a_second_training_step_makes_no_new_buffers(made: list[int]) -> None:
    layer = GridLSTM(8, 300, num_layers=3)
    for _ in range(2):
        before = len(made)
        layer(torch.randn(9, 8, 8))[0].sum().backward()
        layer.zero_grad()
    assert before > 0
    assert len(made) == before


def test_buffers_of_all_sizes_keep_no_more_memory_than_was_held_at_once(made: list[int]) -> None:
    rows = [k * ROWS for k in (3, 4, 5, 9, 2, 7, 6, 8)]
    for a, b in zip(rows, rows[::-1], strict=True):
        held = [empty(k, 8, like=LIKE) for k in (a, b)]
    del held
    most = 12 * HUGE_PAGE  # 9 and 2, 3 and 8, or with a buffer of 9 instead of one of 2, hence at most twice that
    empty(ROWS, 8, like=LIKE)
    assert sum(region.size for region in memory._pool._unused) <= 2 * most
    assert sum(made) > 2 * most  # otherwise nothing was dropped


@pytest.mark.parametrize(("rows", "device"), [(ROWS - 1, "cpu"), (3 * ROWS, "meta")])
def test_small_buffers_and_other_devices_are_ordinary_tensors(rows: int, device: str) -> None:
    assert empty(rows, 8, like=torch.empty(0, device=device)).device.type == device


def test_threads_never_share_a_buffer() -> None:
    def differing(value: int) -> int:
        wrong = 0
        for _ in range(50):
            buffer = empty(2 * ROWS, 8, like=LIKE).fill_(value)
            wrong += int((buffer != value).sum())
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(differing, range(4))) == 0


HOLES = """
import re, sys
import torch
from gridlstm.command import prepare
from gridlstm.training.callbacks.free_memory import GiveBackMemory

def resident() -> int:
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

prepare()
tensors = [torch.ones(1 << 18) for _ in range(400)]  # 1 MB each
tensors = tensors[::2]
before = resident()
GiveBackMemory(most=int(sys.argv[1]) << 20).on_validation_end(None, None)
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(("most", "given_back"), [(1 << 10, False), (100, True)])
def test_holes_are_given_back_if_there_is_much_of_them(most: int, given_back: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    output = subprocess.check_output([sys.executable, "-c", HOLES, str(most)], env=environment, text=True)
    assert (int(output) > 150) == given_back  # of 200 MB
