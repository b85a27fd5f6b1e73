"""The pointwise step of a plain LSTM on a GPU, in one pass over memory: the kernels of triton_kernels.py.

Tests compare it with the reference in Triton's interpreter, but it was never timed on a GPU. So it runs only if the
user asks for it: callbacks.engine_choices.pointwise=triton calls ``fused.force_pointwise_step("triton")``.
"""

import os
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell
from gridlstm.engine.buffers import Buffers
from gridlstm.engine.plan import Diagonal
from gridlstm.errors import UserError

TILE = 512
"""Elements that one program of a kernel computes, several rows if these are short: four for each thread."""
MOST_UNITS = 1024
"""Longest part of a row that one program computes."""


def interpreted() -> bool:
    """Return True if Triton runs in its interpreter, which computes on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(device: torch.device | None = None) -> str | None:
    """Return why Triton's kernels cannot compute on this device, or on any if none is given; None if they can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreted():
        return None if device is None or device.type == "cpu" else "TRITON_INTERPRET=1 moves them to the CPU"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return None if device is None or device.type == "cuda" else f"the tensors are on the {device.type}"


def check_triton(option: str, device: torch.device) -> None:
    """Raise UserError unless Triton's kernels can compute on this device.

    Args:
        option: the option that asks for them, as the user types it.
    """
    if (why := obstacle(device)) is not None:
        raise UserError(
            f"{option} cannot work here: {why}. Triton's kernels need a GPU and the triton that PyTorch installs for "
            f"it. Remove the option."
        )


def triton_step(n: int, buffers: Buffers, backward: bool) -> "TritonStep | None":
    """Return the Triton step of this dimension, or None if there is none."""
    return TritonStep(n, buffers, backward) if triton_fits(buffers.layout.block.cells[n], buffers.X[0]) else None


def triton_fits(cell: Cell, like: Tensor) -> bool:
    """Return True if there is a Triton step for this cell in this precision on this device."""
    return (
        type(cell) is LSTM
        and type(like) is Tensor  # others, such as FakeTensor, have no memory to point to
        and like.dtype in (torch.float32, torch.float64)
        and like.device.type == ("cpu" if interpreted() else "cuda")
    )


class TritonStep:
    """The LSTM of one dimension. The kernels get the addresses of these views, so they read and write the buffers."""

    def __init__(self, n: int, buffers: Buffers, backward: bool) -> None:
        from gridlstm.engine import triton_kernels  # loads Triton, which not every installation has

        self.kernels = triton_kernels
        layout, stage = buffers.layout, buffers.layout.stage_of[n]
        cell, columns, like = layout.block.cells[n], layout.columns[n], buffers.X[0]
        assert isinstance(cell, LSTM)
        self.buffers = buffers
        self.B, self.d = layout.B, layout.block.sizes[n]
        self.stage = stage
        self.standard = cell.output == "standard"
        self.z, self.z_stride = buffers.Z[stage][:, :, layout.gates[n]], buffers.Z[stage].shape[-1]
        self.m = buffers.M[n]
        self.h, self.h_stride = like[:, :, columns], layout.D
        # The forward pass writes to all stages, whose storage is one: see ``buffers.stages_of``.
        self.stage_stride = buffers.X[1].storage_offset() - like.storage_offset() if len(buffers.X) > 1 else 0
        self.successors, self.copy_of = layout.plan.successors[n], layout.plan.copy_of
        self.bias = buffers.added_biases[n]
        self.low_h = buffers.low_X[0][:, :, columns] if buffers.low_X is not None and buffers.factors is None else None
        self.keep_h, self.keep_m = (
            None
            if keep is None
            else (keep if keep.dtype == torch.bool else keep.to(like.dtype))
            .expand(*keep.shape[:-1], self.d)
            .contiguous()
            for keep in buffers.keep[n]
        )
        if backward:
            self.dh, self.dm = buffers.dH[:, :, columns], buffers.dM[n]
        units = min(MOST_UNITS, 1 << (self.d - 1).bit_length())  # Triton's tiles are powers of two
        self.tile = max(1, TILE // units), units

    def forward(self, diagonal: Diagonal) -> None:
        self._launch(
            self.kernels.lstm_forward,
            diagonal.rows,
            (self.z, self.m, self.h, self.successors, self.keep_h, self.keep_m, self.bias, self.copy_of, self.low_h),
            *(self.buffers.first * self.B, self.B, self.d, self.z_stride, self.h_stride, self.stage_stride),
            *(self.buffers.is_low, len(self.buffers.X), self.stage, self.standard),
        )

    def restore(self, rows: slice) -> None:
        self._launch(self.kernels.lstm_gates, rows, (self.z,), self.d, self.z_stride)

    def backward(self, diagonal: Diagonal, later: Tensor | None) -> Tensor | None:
        past_h = None if self.keep_h is None else self.m.new_empty(diagonal.size, self.B, self.d)
        self._launch(
            self.kernels.lstm_backward,
            diagonal.rows,
            (
                *(self.z, self.m, self.h, self.successors, self.keep_h, self.keep_m, self.bias, self.copy_of),
                *(self.dh, self.dm, past_h),
            ),
            *(self.B, self.d, self.z_stride, self.h_stride),
            *(
                self.buffers.is_low,
                later is not None,
                self.standard,
            ),  # ``later`` is always the diagonal's own rows of dH
        )
        return past_h

    def _launch(self, kernel: Any, blocks: slice, tensors: tuple[Tensor | None, ...], *numbers: Any) -> None:
        """Run a kernel on the rows of these blocks, with a program for each tile, on the buffers' device."""
        (rows, units), first, end = self.tile, blocks.start * self.B, blocks.stop * self.B
        grid = (-(-(end - first) // rows), -(-self.d // units))
        with torch.cuda.device_of(self.z):
            kernel[grid](*tensors, first, end, *numbers, rows, units)
