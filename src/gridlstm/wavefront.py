"""The diagonal wavefront: all blocks whose coordinates have the same sum at once, for any number of dimensions.

Shape legend: as in ``gridlstm.buffers``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gridlstm.buffers import Buffers
from gridlstm.packed import Packed, steps
from gridlstm.plan import Diagonal, Order


class Wavefront:
    """The schedule: one product for each diagonal and stage."""

    order: Order = "diagonal"

    def forward(
        self, buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None], again: bool
    ) -> None:
        layout, pointwise = buffers.layout, steps(buffers)
        packed, bias = layout.pack_weights_transposed(weights), layout.pack_biases(biases, buffers.X[0])
        for diagonal in layout.plan.diagonals:
            for k, stage in enumerate(layout.block.stages):
                x, z = buffers.operand(k, diagonal.rows), buffers.Z[k][diagonal.rows]
                _product(diagonal, x, packed[k], bias[k], out=z)
                for n in stage:
                    if again:
                        pointwise[n].restore(diagonal)
                    else:
                        pointwise[n].forward(diagonal)

    def backward(self, buffers: Buffers, weights: Sequence[Tensor]) -> None:
        layout, dH = buffers.layout, buffers.dH
        stages, last = layout.block.stages, len(layout.block.stages) - 1
        packed, pointwise = layout.pack_weights(weights), steps(buffers, backward=True)
        for diagonal in reversed(layout.plan.diagonals):
            here = dH[diagonal.rows]
            for k in range(last, -1, -1):
                # The columns of dimension n collect the gradient of the block's own h'_n until its stage, and after
                # it that of the incoming h_n.
                later = here if k < last else None
                direct = [(layout.columns[n], pointwise[n].backward(diagonal, later)) for n in stages[k]]
                if later is not None:
                    for columns, _ in direct:
                        here[:, :, columns] = 0
                dz = buffers.Z[k][diagonal.rows]
                if buffers.drop is None:
                    _product(diagonal, dz, packed[k], None, out=here, add=later is not None)
                else:
                    _product(diagonal, dz, packed[k], None, out=(read := torch.empty_like(here)))
                    read *= buffers.drop[diagonal.rows]
                    here.copy_(read if later is None else here + read)
                for columns, gradient in direct:
                    if gradient is not None:
                        here[:, :, columns] += gradient


wavefront = Packed(Wavefront())
recomputing_wavefront = Packed(Wavefront(), recompute=True)


def _product(
    diagonal: Diagonal, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool = False
) -> None:
    """out (r, B, j) = x (r, B, i) times each block's copy of weight (copies, i, j), plus its bias or what is there."""
    copies = diagonal.batched_copies
    if len(diagonal.copies) == 1 or copies is None:
        start = 0
        for copy, count in diagonal.copies:
            rows = slice(start, start + count)
            _mm(x[rows].flatten(0, 1), weight[copy], None if bias is None else bias[copy], out[rows].flatten(0, 1), add)
            start += count
        return
    n = copies.stop - copies.start
    x, out = x.view(n, -1, x.shape[-1]), out.view(n, -1, out.shape[-1])
    if add:
        out.baddbmm_(x, weight[copies])
    elif bias is None:
        torch.bmm(x, weight[copies], out=out)
    else:
        torch.baddbmm(bias[copies, None], x, weight[copies], out=out)


def _mm(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool) -> None:
    if add:
        out.addmm_(x, weight)
    elif bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)
