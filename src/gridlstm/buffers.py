"""What a wavefront sweep keeps: how dimensions are packed, and the buffers that blocks read and write.

Shape legend: B batch rows, d_n size of dimension n, D = d_1 + ... + d_N, C blocks of the grid, r blocks of one
diagonal, G packed gates of all dimensions of one stage. Buffers are (rows, B, ...), a row as in ``plan.Plan``.
"""

import ctypes
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from gridlstm.plan import Diagonal, Plan, Runs, plan
from gridlstm.scan import Block

HUGE_PAGE = 1 << 21
_MADV_HUGEPAGE = 14


def empty(*shape: int, like: Tensor) -> Tensor:
    """``like.new_empty(shape)``, in huge pages where it is large, on the CPU, and Linux grants them.

    Buffers of 100 MB are new at every step, and touching fresh 4 KB pages costs more than the pointwise arithmetic.
    """
    buffer = like.new_empty(shape)
    start = -(-buffer.data_ptr() // HUGE_PAGE) * HUGE_PAGE if buffer.device.type == "cpu" else 0
    length = (buffer.data_ptr() + buffer.nbytes - start) // HUGE_PAGE * HUGE_PAGE if start else 0
    if length > 0 and sys.platform == "linux":
        # Advice only: where it is refused, pages stay small.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    return buffer


class Layout:
    """Where each dimension stands in the packed buffers."""

    def __init__(self, block: Block, extents: tuple[int, ...], B: int, device: torch.device) -> None:
        self.block = block
        self.B = B
        self.D = sum(block.sizes)
        self.plan: Plan = plan(extents, block.untied, device)
        starts = [sum(block.sizes[:n]) for n in range(len(extents))]
        self.columns = [slice(a, a + size) for a, size in zip(starts, block.sizes, strict=True)]
        self.stage_of = {n: k for k, stage in enumerate(block.stages) for n in stage}
        self.gates: dict[int, slice] = {}  # of each dimension within its stage
        self.num_gates: list[int] = []  # G of each stage
        for stage in block.stages:
            G = 0
            for n in stage:
                rows = block.cells[n].num_gates * block.sizes[n]
                self.gates[n] = slice(G, G + rows)
                G += rows
            self.num_gates.append(G)

    def pack_weights(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Each stage's weights as (copies, G, D)."""
        packed = [torch.cat([weights[n] for n in stage], dim=-2) for stage in self.block.stages]
        return [weight.reshape(-1, *weight.shape[-2:]) for weight in packed]

    def pack_weights_transposed(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Each stage's weights as contiguous (copies, D, G): products with few rows are faster on this layout."""
        packed = []
        for stage, G in zip(self.block.stages, self.num_gates, strict=True):
            weight = weights[stage[0]].new_empty(*weights[stage[0]].shape[:-2], self.D, G)
            for n in stage:
                weight[..., self.gates[n]] = weights[n].mT
            packed.append(weight.reshape(-1, self.D, G))
        return packed

    def pack_biases(self, biases: Sequence[Tensor | None], like: Tensor) -> list[Tensor | None]:
        """Each stage's biases as (copies, G), zero for a dimension without; None where no dimension has one."""
        packed: list[Tensor | None] = []
        for stage, G in zip(self.block.stages, self.num_gates, strict=True):
            present = [(n, bias) for n in stage if (bias := biases[n]) is not None]
            if not present:
                packed.append(None)
                continue
            total = like.new_zeros(len(self.plan.by_copy), G)
            for n, bias in present:
                total[:, self.gates[n]] = bias.reshape(-1, bias.shape[-1])
            packed.append(total)
        return packed


class Buffers:
    """The slots of a sweep.

    Attributes:
        X: for each stage what its product multiplies, (rows, B, D): slots that predecessors fill. A dimension of an
            earlier stage appears there already updated.
        M: each dimension's incoming memory, (rows, B, memory size).
        Z: each stage's pre-activations, then what a cell keeps of them, then their gradients: (C, B, G).
        dH: gradient of what enters each block and of what leaves the grid, (rows, B, D); in the backward pass.
        dM: likewise of the memories.
    """

    def __init__(self, layout: Layout, X: Sequence[Tensor], M: Sequence[Tensor], Z: Sequence[Tensor]) -> None:
        self.layout = layout
        self.X, self.M, self.Z = X, M, Z
        self.dH: Tensor
        self.dM: list[Tensor]

    def incoming(self, n: int, diagonal: Diagonal) -> tuple[Tensor, Tensor, Tensor]:
        """z (r * B, G_n), h (r * B, d_n) and m (r * B, memory size) of one dimension on one diagonal."""
        here, k = diagonal.rows, self.layout.stage_of[n]
        return (
            self.Z[k][here, :, self.layout.gates[n]].flatten(0, 1),
            self.X[k][here, :, self.layout.columns[n]].flatten(0, 1),
            self.M[n][here].flatten(0, 1),
        )


def put(buffer: Tensor, to: Runs | Tensor, values: Tensor) -> None:
    """buffer (rows, B, d) <- values (r, B, d) at the successors' rows."""
    if isinstance(to, Tensor):
        buffer.index_copy_(0, to, values)
    else:
        for source, target in to:
            buffer[target].copy_(values[source])


def take(buffer: Tensor, at: Runs | Tensor) -> Tensor:
    """The successors' rows of a buffer in the order of the diagonal: (r, B, d), a view where possible."""
    if isinstance(at, Tensor):
        return buffer.index_select(0, at)
    if len(at) == 1:
        return buffer[at[0][1]]
    return torch.cat([buffer[target] for _, target in at])
