"""The pointwise step of an LSTM, plain or with layer normalization, in one pass over memory: C code.

Where it does not fit, ``steps.EagerStep`` computes the same numbers up to float32 rounding.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import LSTM, Cell
from gridlstm.cells import LayerNormLSTM
from gridlstm.engine.buffers import Buffers, take
from gridlstm.engine.compiled import (
    MOST_SHARING,
    MOST_STAGES,
    NORM_PARTS,
    NORM_SCRATCH,
    Dimension,
    Norm,
    library,
)
from gridlstm.engine.plan import Diagonal
from gridlstm.engine.steps import Step
from gridlstm.engine.triton_step import obstacle
from gridlstm.scan import Block, held

# B d^2 of a chain's step up to which the products of fused_chain.c are faster than PyTorch's: on an Intel Xeon, 3 % at
# 50 rows of 1000 units; 4 % slower at 100 rows.
MOST_CHAINED = 6e7
# The same in a sweep in bfloat16, where these products are in float32 all the same: on a Zen 5, chains are faster up to
# 15 rows of 280 units.
LOW_MOST_CHAINED = 1.2e6

PointwiseStep = Literal["fused", "eager", "triton"]
"""Pointwise step: "eager" is plain PyTorch. For LSTM cells, "fused" is C on the CPU and "triton" a kernel on a GPU."""

_forced: PointwiseStep | None = None


def pointwise_step() -> PointwiseStep:
    """Return the step in use: fused if it can be built, unless ``force_pointwise_step`` chose another."""
    if _forced == "triton" and obstacle() is None:
        return "triton"
    return "eager" if _forced == "eager" or library() is None else "fused"


def force_pointwise_step(name: PointwiseStep) -> None:
    """Use this step from now on, if this machine supports it."""
    global _forced
    _forced = name


@contextmanager
def using_step(name: PointwiseStep) -> Iterator[None]:
    """Use this step inside the block, if this machine supports it."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def fused_step(n: int, buffers: Buffers, backward: bool) -> "FusedStep | None":
    """Return the compiled step of this dimension, or None if there is none."""
    if not _fits(n, buffers):
        return None
    step = FusedStep if type(buffers.layout.block.cells[n]) is LSTM else FusedLayerNorm
    return step(n, buffers, backward)


def adds_bias(n: int, buffers: Buffers) -> bool:
    """Return True if this dimension's step can add its bias to z, which saves a pass over memory before the product."""
    return type(buffers.layout.block.cells[n]) is LSTM and pointwise_step() == "fused" and _fits(n, buffers)


def _fits(n: int, buffers: Buffers) -> bool:
    like = buffers.X[0]
    return (
        len(buffers.X) <= MOST_STAGES
        and can_fuse(buffers.layout.block.cells[n], like)
        and all((vector.dtype, vector.device) == (like.dtype, like.device) for vector in buffers.vectors[n])
    )


def can_fuse(cell: Cell, like: Tensor) -> bool:
    """Return True if there is a compiled step for this cell in this precision on this device."""
    return (
        type(cell) in (LSTM, LayerNormLSTM)
        and type(like) is Tensor  # others, such as FakeTensor, have no memory to point to
        and like.dtype == torch.float32
        and like.device.type == "cpu"
        and pointwise_step() != "eager"
        and library() is not None
    )


class FusedStep:
    """The LSTM of one dimension. Pointers stay valid because the step holds references to the buffers."""

    holds_rows = True
    """True if the C code reads masks of whole rows."""

    def __init__(self, n: int, buffers: Buffers, backward: bool) -> None:
        layout = buffers.layout
        cell, stage, column = layout.block.cells[n], layout.stage_of[n], layout.columns[n].start
        assert isinstance(cell, LSTM)
        loaded = library()
        assert loaded is not None
        self.library = loaded
        self.n = n
        self.buffers = buffers
        self.readers: Sequence[FusedStep] = ()
        self.columns = layout.columns[n]
        Z = buffers.Z[stage]
        self.successors = layout.plan.successors[n]
        self.later_stride = layout.B * layout.D * buffers.X[0].element_size()
        self.z_stride = layout.B * Z.shape[-1] * Z.element_size()
        self.z = Z.data_ptr() + layout.gates[n].start * Z.element_size()
        # Referenced here, because the C code has only an address.
        self.keep = [None if keep is None else self._keep(keep) for keep in buffers.keep[n]]
        keep_h, keep_m = [None if x is None or x.dtype == torch.bool else x.data_ptr() for x in self.keep]
        hold_h, hold_m = [None if x is None or x.dtype != torch.bool else x.data_ptr() for x in self.keep]
        choose_h, choose_m = (keep is not None and keep.dtype == torch.bool for keep in buffers.keep[n])
        self.bias = buffers.added_biases[n]
        self.here = buffers.dH.data_ptr() + column * buffers.dH.element_size() if backward else None
        self.dimension = Dimension(
            z=self.z,
            m=buffers.M[n].data_ptr(),
            h=(ctypes.c_void_p * MOST_STAGES)(*(x.data_ptr() + column * x.element_size() for x in buffers.X)),
            successor=self.successors.data_ptr(),
            grad_h=self.here,
            grad_m=buffers.dM[n].data_ptr() if backward else None,
            keep_h=keep_h,
            keep_m=keep_m,
            hold_h=hold_h,
            hold_m=hold_m,
            bias=None if self.bias is None else self.bias.data_ptr(),
            copy_of=layout.plan.copy_of.data_ptr() if len(layout.plan.by_copy) > 1 else None,
            z_stride=Z.shape[-1],
            h_stride=layout.D,
            copies=len(layout.plan.by_copy),
            B=layout.B,
            d=layout.block.sizes[n],
            stages=len(buffers.X),
            stage=stage,
            standard=cell.output == "standard",
            choose_h=choose_h,
            choose_m=choose_m,
            threads=torch.get_num_threads(),
        )
        if backward and (total := buffers.grad_biases[n]) is not None:
            self.bias_sums = total.new_zeros(len(total), total.shape[-1], dtype=torch.float32)
            self.dimension.grad_bias, self.dimension.bias_sums = total.data_ptr(), self.bias_sums.data_ptr()
        if buffers.is_low:
            self.scratch = buffers.X[0].new_empty(layout.B, 4 * layout.block.sizes[n])
            self.dimension.z, self.dimension.low_z, self.dimension.scratch = None, self.z, self.scratch.data_ptr()
            for k, x in enumerate((buffers.low_X or ()) if buffers.factors is None else ()):
                self.dimension.low_h[k] = x.data_ptr() + column * x.element_size()

    def _keep(self, keep: Tensor) -> Tensor:
        """Return a mask as the C code reads it: booleans for whole rows, or one float for each unit."""
        if keep.dtype == torch.bool and keep.shape[-1] == 1 and self.holds_rows:
            return keep.contiguous()
        size = self.buffers.layout.block.sizes[self.n]
        return keep.to(torch.float32).expand(*keep.shape[:-1], size).contiguous()

    def join(self, readers: Sequence["FusedStep"]) -> None:
        """Compute these dimensions too, which have the same pre-activations."""
        self.readers = readers
        for before, reader in pairwise([self, *readers]):
            before.dimension.reader = ctypes.addressof(reader.dimension)

    def forward(self, diagonal: Diagonal) -> None:
        self._place_z()
        self.run_forward(diagonal.rows.start, diagonal.size)

    def _place_z(self) -> None:
        """Let row numbers count from the first row of the whole buffers, even if Z has only the rows of a diagonal."""
        z = self.z - self.buffers.first * self.z_stride
        if self.buffers.is_low:
            self.dimension.low_z = z
        else:
            self.dimension.z = z

    def restore(self, rows: slice) -> None:
        self.library.lstm_gates(self.dimension, rows.start, rows.stop - rows.start)

    def backward(self, diagonal: Diagonal, later: Tensor | None) -> Tensor | None:
        first = diagonal.rows.start
        for step in (self, *self.readers):
            assert step.here is not None
            # ``later`` is always the diagonal's own rows of dH.
            step.dimension.later = None if later is None else step.here + first * self.later_stride
        self.run_backward(first, diagonal.size)
        return self.held_gradient(diagonal)

    def held_gradient(self, diagonal: Diagonal) -> Tensor | None:
        """Return the gradient of h that bypasses the step, given that of h'; None without masks that keep h."""
        keep_h = self.buffers.keep[self.n][0]
        if keep_h is None:
            return None
        return held(keep_h[diagonal.rows], take(self.buffers.dH[:, :, self.columns], diagonal.successors[self.n]))

    def forward_chain(self, rows: slice, weight: Tensor) -> None:
        """Compute blocks that follow each other, given all of z but the product of their own h with weight (d, 4 d)."""
        panels = _panels(weight.to(torch.float32), self.library.lstm_panel())
        self._place_z()
        self.library.lstm_chain_forward(self.dimension, panels.data_ptr(), rows.start, rows.stop - rows.start)

    def backward_chain(self, rows: slice, weight: Tensor) -> None:
        """Compute ``backward`` of the same blocks, and add the gradient of h through weight (4 d, d)."""
        panels = _panels(weight.to(torch.float32), self.library.lstm_panel())
        self.library.lstm_chain_backward(self.dimension, panels.data_ptr(), rows.start, rows.stop - rows.start)

    def run_forward(self, first: int, count: int) -> None:
        """Call the C forward pass on these blocks."""
        self.library.lstm_forward(self.dimension, first, count)

    def run_backward(self, first: int, count: int) -> None:
        """Call the C backward pass on these blocks."""
        self.library.lstm_backward(self.dimension, first, count)


class Joint:
    """The step of a dimension with the same pre-activations as another (``Block.same``), whose step computes it too.

    It runs after that step.
    """

    def __init__(self, step: FusedStep) -> None:
        self.step = step

    def forward(self, diagonal: Diagonal) -> None:
        """Do nothing."""

    def restore(self, rows: slice) -> None:
        """Do nothing."""

    def backward(self, diagonal: Diagonal, later: Tensor | None) -> Tensor | None:
        return self.step.held_gradient(diagonal)


def joint_steps(buffers: Buffers, backward: bool) -> dict[int, Step]:
    """Return the steps of all dimensions in ``Block.same``: those that others read compute these too."""
    same = buffers.layout.same
    own = {n: FusedStep(n, buffers, backward) for n in {*same, *same.values()}}
    for owner in set(same.values()):
        own[owner].join([own[n] for n in same if same[n] == owner])
    return {n: Joint(step) if n in same else step for n, step in own.items()}


def joint_fits(block: Block, like: Tensor) -> bool:
    """Return True if one compiled step can compute all dimensions with the same pre-activations.

    Args:
        like: any tensor of the sweep, (..., B, size).
    """
    owners = [owner for _, owner in block.same]
    return (
        pointwise_step() == "fused"
        and all(type(block.cells[n]) is LSTM and can_fuse(block.cells[n], like) for pair in block.same for n in pair)
        and len(block.stages) <= MOST_STAGES
        and all(1 + owners.count(owner) <= MOST_SHARING for owner in owners)
    )


def _panels(weight: Tensor, width: int) -> Tensor:
    """Return weight (inner, columns) in panels of some columns, as fused_chain.c reads it."""
    inner, columns = weight.shape
    padded = F.pad(weight, (0, -columns % width))
    return padded.reshape(inner, -1, width).transpose(0, 1).contiguous()


def chain_fits(block: Block, like: Tensor, product_dtype: torch.dtype | None, masked: bool) -> bool:
    """Return True if the compiled step can compute a chain of blocks along the first dimension in one call.

    Only where each step is one block: in a chain, and in a layer of two dimensions. Operation counters see only
    PyTorch's operations, so it cannot under one.

    Args:
        like: any tensor of the sweep, (..., B, size).
        masked: True if the sweep drops or keeps h of the first dimension.
    """
    most = {None: MOST_CHAINED, torch.bfloat16: LOW_MOST_CHAINED}.get(product_dtype, 0)
    return (
        type(block.cells[0]) is LSTM
        and can_fuse(block.cells[0], like)
        and len(block.cells) <= 2
        and len(block.stages) == 1
        and not masked
        and like.shape[-2] * block.sizes[0] ** 2 <= most
        and torch._C._len_torch_dispatch_stack() == 0
    )


def chained_step(step: Step, buffers: Buffers) -> "FusedStep | None":
    """Return the first dimension's step if it can compute a chain of blocks in one call, or None."""
    layout, factors = buffers.layout, buffers.factors
    masked = buffers.keep[0][0] is not None or (factors is not None and factors.change(layout.columns[0]))
    fits = chain_fits(layout.block, buffers.X[0], layout.product_dtype, masked)
    readable = layout.product_dtype is None or buffers.is_low
    return step if fits and readable and isinstance(step, FusedStep) else None


class FusedLayerNorm(FusedStep):
    """``LayerNormLSTM`` of one dimension."""

    holds_rows = False

    def __init__(self, n: int, buffers: Buffers, backward: bool) -> None:
        super().__init__(n, buffers, backward)
        cell, threads, d = buffers.layout.block.cells[n], self.dimension.threads, self.dimension.d
        assert isinstance(cell, LayerNormLSTM)
        like = buffers.X[0]
        gain, shift = (vector.contiguous() for vector in buffers.vectors[n])
        scratch = like.new_empty(threads, NORM_SCRATCH, d)
        sums = (
            gain.new_zeros(threads, 2, len(gain), NORM_PARTS, d, dtype=torch.float64)
            if backward and threads > 1
            else None
        )
        grads = buffers.grad_vectors[n] if backward else (None, None)
        self.held = (gain, shift, scratch, sums)
        self.norm = Norm(
            gain=gain.data_ptr(),
            shift=shift.data_ptr(),
            copy_of=buffers.layout.plan.copy_of.data_ptr(),
            scratch=scratch.data_ptr(),
            sums=None if sums is None else sums.data_ptr(),
            grad_gain=None if grads[0] is None else grads[0].data_ptr(),
            grad_shift=None if grads[1] is None else grads[1].data_ptr(),
            copies=len(gain),
            epsilon=cell.epsilon,
        )

    def restore(self, rows: slice) -> None:
        """Do nothing: the backward pass reads the pre-activations."""

    def run_forward(self, first: int, count: int) -> None:
        self.library.layer_norm_forward(self.dimension, self.norm, first, count)

    def run_backward(self, first: int, count: int) -> None:
        self.library.layer_norm_backward(self.dimension, self.norm, first, count)
