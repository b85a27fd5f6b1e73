"""MKL's float32 product with a weight that is packed once and multiplied many times.

An ordinary product first copies its weight into an order of MKL's own. PyTorch's library contains MKL and exports the
functions that make this copy once, so nothing has to be compiled.
"""

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gridlstm.engine.memory import empty

# Values of MKL's enumerations: the order of matrices, the kinds of operands, and the operand on the right.
BY_ROWS, PLAIN, TRANSPOSED, PACKED, RIGHT = 101, 111, 112, 151, 162

# Rows on the left for which MKL packs, with one thread and with more. Other numbers of rows are as exact. Packed for
# few rows, products are slower than ordinary ones, and packed for many, MKL computes products of fewer rows or of few
# columns with one thread.
ROWS, ROWS_OF_THREADS = 1024, 256


@lru_cache(maxsize=1)
def library() -> Any:
    """Return PyTorch's library, which exports MKL's functions; None if it does not."""
    number, pointer = ctypes.c_int, ctypes.c_void_p
    try:
        loaded = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        size, pack, compute = (getattr(loaded, f"cblas_sgemm_{x}") for x in ("pack_get_size", "pack", "compute"))
    except (OSError, AttributeError):
        return None
    size.restype = ctypes.c_size_t
    size.argtypes = [number] * 4
    pack.restype = compute.restype = None
    pack.argtypes = [*[number] * 6, ctypes.c_float, pointer, number, pointer]
    compute.argtypes = [*[number] * 6, *[pointer, number] * 2, ctypes.c_float, pointer, number]
    return loaded


class PackedWeight:
    """A float32 matrix (inner, columns) on the CPU, for products with any number of rows on its left."""

    def __init__(self, weight: Tensor) -> None:
        by_rows = _has_rows(weight)
        if not by_rows and not _has_rows(weight.t()):
            weight, by_rows = weight.contiguous(), True
        self.library = library()
        self.inner, self.columns = weight.shape
        sizes = (ROWS if torch.get_num_threads() == 1 else ROWS_OF_THREADS, self.columns, self.inner)
        size = self.library.cblas_sgemm_pack_get_size(RIGHT, *sizes)
        self.packed = empty(-(-size // weight.element_size()), like=weight)
        self.address = self.packed.data_ptr()
        stored, apart = (PLAIN, _apart(weight)) if by_rows else (TRANSPOSED, _apart(weight.t()))
        self.library.cblas_sgemm_pack(BY_ROWS, RIGHT, stored, *sizes, 1.0, weight.data_ptr(), apart, self.address)

    def multiply(self, x: Tensor, out: Tensor, add: bool = False) -> None:
        """Compute out = x weight, or with ``add`` out += x weight, for matrices."""
        if not _has_rows(x):
            x = x.contiguous()
        if not _has_rows(out):
            self.multiply(x, (product := out.contiguous()), add)
            out.copy_(product)
            return
        rows, columns, inner = len(x), self.columns, self.inner
        left, right, result = (x.data_ptr(), _apart(x)), (self.address, columns), (out.data_ptr(), _apart(out))
        self.library.cblas_sgemm_compute(
            BY_ROWS, PLAIN, PACKED, rows, columns, inner, *left, *right, float(add), *result
        )


def _has_rows(x: Tensor) -> bool:
    """Return True if the numbers of a row are adjacent and rows do not overlap."""
    return (x.stride(1) == 1 or x.shape[1] == 1) and (x.stride(0) >= x.shape[1] or len(x) == 1)


def _apart(x: Tensor) -> int:
    """Return the distance between rows; for a single row, which has any distance in PyTorch, the one MKL expects."""
    return x.shape[1] if len(x) == 1 else x.stride(0)
