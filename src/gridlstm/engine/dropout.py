"""Dropout inside a sweep: products read h times its factors.

Shape legend: r blocks, B batch rows, D columns of a product's operand.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.engine import compiled


class Factors(NamedTuple):
    """Factors on the operands of products."""

    drop: Tensor
    """(r, B, D); booleans, False for what is dropped, if there is a scale"""
    scale: Tensor | None
    """(D,): multiplies ``drop``"""
    span: slice
    """The first to the last column of the whole operand whose factors may differ from 1."""

    def of(self, rows: slice, columns: slice = slice(None)) -> "Factors":
        """Return the factors of some blocks and columns."""
        return Factors(self.drop[rows, :, columns], None if self.scale is None else self.scale[columns], self.span)

    def change(self, columns: slice) -> bool:
        """Return True unless the factors of all these columns are 1."""
        return columns.start < self.span.stop and self.span.start < columns.stop

    def times(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return x (r, B, D) times the factors; in ``out``, in its type, if it is given."""
        if (library := self._library(x, x if out is None else out)) is None:
            product = x * self.drop if self.scale is None else (x * self.drop).mul_(self.scale)
            return product if out is None else out.copy_(product)
        out = torch.empty_like(x) if out is None else out
        low, place = out.dtype == torch.bfloat16, out.data_ptr()
        library.dropout_forward(self._in_c(x, out), x.data_ptr(), None if low else place, place if low else None)
        return out

    def times_into(self, to: Tensor, gradient: Tensor, add: bool) -> None:
        """Replace ``to`` by the gradient of an operand times its factors, both (r, B, D); with ``add`` add that."""
        if (library := self._library(to, gradient)) is None:
            product = self.times(gradient.to(to.dtype))
            if add:
                to.add_(product)
            else:
                to.copy_(product)
            return
        low, place = gradient.dtype == torch.bfloat16, gradient.data_ptr()
        in_c = self._in_c(gradient, to)
        library.dropout_backward(in_c, None if low else place, place if low else None, to.data_ptr(), add)

    def _library(self, x: Tensor, other: Tensor) -> ctypes.CDLL | None:
        """Return the C code if it can read x, in float32, the other tensor, and these factors.

        Hooks on saved tensors may have changed the factors' types and strides.
        """
        fits = (
            self.scale is not None
            and self.drop.dtype == torch.bool
            and self.scale.dtype == torch.float32
            and type(x) is Tensor  # others, such as FakeTensor, have no memory to point to
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and other.dtype in (torch.float32, torch.bfloat16)
            and self.scale.is_contiguous()
            and all(_row_stride(y) is not None for y in (x, other, self.drop))
        )
        return compiled.library() if fits else None

    def _in_c(self, source: Tensor, target: Tensor) -> compiled.Factors:
        assert self.scale is not None
        strides = [_row_stride(x) for x in (self.drop, source, target)]
        rows, d = self.drop.shape[0] * self.drop.shape[1], len(self.scale)
        return compiled.Factors(
            self.drop.data_ptr(), self.scale.data_ptr(), rows, d, *strides, threads=torch.get_num_threads()
        )


def _row_stride(x: Tensor) -> int | None:
    """Return the elements from each row of x (r, B, D) to the next; None if that differs, or D is not contiguous."""
    (r, B, D), (block, row, element) = x.shape, x.stride()
    even = r == 1 or B == 1 or block == B * row
    return (block if B == 1 else row) if even and (D == 1 or element == 1) else None
