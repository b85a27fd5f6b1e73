"""The diagonal wavefront: computes all blocks with the same sum of coordinates at once, in any number of dimensions.

Shape legend: as in ``gridlstm.engine.buffers``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gridlstm.engine.buffers import Buffers, Layout, by_copy
from gridlstm.engine.fused import FusedStep, Joint
from gridlstm.engine.matmul import SMALL, affine, multiply, packs_weights
from gridlstm.engine.mkl import PackedWeight
from gridlstm.engine.packed import Packed, steps
from gridlstm.engine.plan import Diagonal, Order, pieces
from gridlstm.engine.steps import Step


class Wavefront:
    """The schedule: one product for each diagonal and stage."""

    order: Order = "diagonal"

    def forward(self, buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        layout, pointwise = buffers.layout, steps(buffers)
        parts = _parts(layout, weights, biases, buffers.X[0])
        for diagonal in _pieces(buffers, pointwise):
            buffers.begin(diagonal.rows)
            for k, stage in enumerate(layout.stages):
                buffers.drop_low(k, diagonal.rows)
                x, z = buffers.operand(k, diagonal.rows), buffers.product(k, diagonal.rows)
                for columns, weight, bias in parts[k]:
                    _product(diagonal, x, weight, bias, out=z if columns is None else z[:, :, columns])
                for n in stage:
                    pointwise[n].forward(diagonal)

    def backward(self, buffers: Buffers, weights: Sequence[Tensor]) -> None:
        layout, dH = buffers.layout, buffers.dH
        stages, last = layout.stages, len(layout.stages) - 1
        whole, pointwise = layout.pack_weights(weights), steps(buffers, backward=True)
        packed = [PackedWeight(weight[0]) for weight in whole] if _uses_mkl(layout) else whole
        for diagonal in reversed(layout.plan.diagonals):
            here = dH[diagonal.rows]
            for k in range(last, -1, -1):
                # Before the stage of dimension n, its columns collect the gradient of the block's own h'_n. After the
                # stage, they collect the gradient of the incoming h_n.
                later = here if k < last else None
                direct = [(layout.columns[n], pointwise[n].backward(diagonal, later)) for n in stages[k]]
                if later is not None:
                    for columns, _ in direct:
                        here[:, :, columns].zero_()
                _multiply_back(buffers, diagonal, k, packed[k], add=later is not None)
                for columns, gradient in direct:
                    if gradient is not None:
                        here[:, :, columns] += gradient


def _multiply_back(buffers: Buffers, diagonal: Diagonal, k: int, weight: Tensor | PackedWeight, add: bool) -> None:
    """Write, or with ``add`` add, the gradient through stage k's product to the diagonal's rows of dH."""
    here, dz = buffers.dH[diagonal.rows], buffers.product(k, diagonal.rows)
    if here.dtype == dz.dtype and buffers.factors is None:
        _product(diagonal, dz, weight, None, out=here, add=add)
        return
    read = torch.empty_like(here, dtype=dz.dtype)
    _product(diagonal, dz, weight, None, out=read)
    if buffers.factors is not None:
        buffers.factors.of(diagonal.rows).times_into(here, read, add)
    elif add:
        here.add_(read)
    else:
        here.copy_(read)


def _parts(
    layout: Layout, weights: Sequence[Tensor], biases: Sequence[Tensor | None], like: Tensor
) -> list[list[tuple[slice | None, Tensor | PackedWeight, Tensor | None]]]:
    """Return each stage's products: columns of z (None for all), weights (copies, D, ·) and bias (copies, ·).

    A sweep of few rows, such as one step of one sequence, reads the weights where they are, one dimension after the
    other: packing them would take longer than it saves.
    """
    bias, copies = layout.pack_biases(biases, like), len(layout.plan.by_copy)
    if _uses_mkl(layout):
        by_mkl = [PackedWeight(weight[0].t()) for weight in layout.pack_weights(weights)]
        return [[(None, weight, own)] for weight, own in zip(by_mkl, bias, strict=True)]
    enough = FEW_ROWS if copies > 1 else layout.D * max(layout.products) / PACKED_PER_ROW
    if layout.plan.blocks * layout.B >= enough * copies:
        packed = layout.pack_weights_transposed(weights)
        return [[(None, weight, own)] for weight, own in zip(packed, bias, strict=True)]

    def part(k: int, n: int) -> tuple[slice | None, Tensor | PackedWeight, Tensor | None]:
        weight = by_copy(weights[n]).to(layout.product_dtype or weights[n].dtype)
        whole = bias[k]
        return layout.gates[n], weight.mT, None if whole is None else whole[:, layout.gates[n]]

    return [[part(k, n) for n in owners] for k, owners in enumerate(layout.owners)]


def _start_quickly(pointwise: Sequence[Step]) -> bool:
    """Return True if all steps are compiled: starting others for every piece takes longer than pieces save."""
    return all(isinstance(step, FusedStep | Joint) for step in pointwise)


def _uses_mkl(layout: Layout) -> bool:
    """Return True if MKL packs the weights of this sweep."""
    plan, rows = layout.plan, layout.plan.blocks * layout.B
    wide = rows / len(plan.diagonals)  # average rows of a diagonal
    many = rows >= MANY_ROWS and wide >= WIDE_ROWS and 2 * wide * layout.D * max(layout.products) >= SMALL
    return packs_weights() and layout.product_dtype is None and len(plan.by_copy) == 1 and many


def _pieces(buffers: Buffers, pointwise: Sequence[Step]) -> tuple[Diagonal, ...]:
    """Return the groups of blocks of the forward pass: diagonals, or pieces of them where these are faster.

    Without kept gates, all diagonals have the same rows of z, which then stay in the cache by themselves.
    """
    if not _start_quickly(pointwise):
        return buffers.layout.plan.diagonals
    layout = buffers.layout
    rows = PIECE // (4 * max(layout.num_gates))
    if rows < PIECE_ROWS or not buffers.keeps_gates or torch.get_num_threads() > 1 or not _uses_mkl(layout):
        return layout.plan.diagonals
    return pieces(layout.plan, max(1, rows // layout.B))


def _product(
    diagonal: Diagonal, x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None, out: Tensor, add: bool = False
) -> None:
    """Compute out (r, B, j) = x (r, B, i) times each block's copy of weight (copies, i, j), plus bias or ``out``."""
    if isinstance(weight, PackedWeight):
        x, out = x.flatten(0, 1), out.flatten(0, 1)
        if bias is not None:
            out.copy_(bias)
        weight.multiply(x, out, add or bias is not None)
        return
    product_dtype = None if weight.dtype == x.dtype else weight.dtype
    batched = diagonal.batched_copies
    if batched is not None and len(diagonal.copies) > 1:
        n = len(diagonal.copies)
        rows = len(x) * x.shape[1] // n  # not -1, because a product may have no columns
        x, out = x.view(n, rows, x.shape[-1]), out.view(n, rows, out.shape[-1])
        if bias is not None:
            out.copy_(bias[batched, None])
        multiply(x, weight[batched], out, product_dtype, add=add or bias is not None)
        return
    start = 0
    for copy, count in diagonal.copies:
        operand, product = (part[start : start + count].flatten(0, 1) for part in (x, out))
        if add:
            multiply(operand, weight[copy], product, product_dtype, add=True)
        else:
            affine(operand, weight[copy], None if bias is None else bias[copy], product, product_dtype)
        start += count


# Packing takes longer than it saves if each of several weight copies has fewer rows than FEW_ROWS, or the only copy has
# fewer rows than one for PACKED_PER_ROW weights. On one thread of an Intel Xeon, both are equally fast at 60 rows for
# 2.6 million weights.
FEW_ROWS = 256
PACKED_PER_ROW = 40_000

# Packing by MKL takes as long as a product of 30 rows, and saves up to a tenth of products of at least 100.
MANY_ROWS = 1024
WIDE_ROWS = 128  # of the average diagonal
# Bytes of a piece of z, which stays in a core's cache between the product and the pointwise step. Products of fewer
# rows than PIECE_ROWS are slower.
PIECE = 256 << 10
PIECE_ROWS = 64

wavefront = Packed(Wavefront())
recomputing_wavefront = Packed(Wavefront(), recompute=True)
