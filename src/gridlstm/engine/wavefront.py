"""The diagonal wavefront: computes all blocks with the same sum of coordinates at once, in any number of dimensions.

Shape legend: as in ``gridlstm.engine.buffers``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gridlstm.engine.buffers import Buffers
from gridlstm.engine.matmul import affine, multiply
from gridlstm.engine.packed import Packed, steps
from gridlstm.engine.plan import Diagonal, Order


class Wavefront:
    """The schedule: one product for each diagonal and stage."""

    order: Order = "diagonal"

    def forward(self, buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        layout, pointwise = buffers.layout, steps(buffers)
        packed, bias = layout.pack_weights_transposed(weights), layout.pack_biases(biases, buffers.X[0])
        for diagonal in layout.plan.diagonals:
            buffers.begin(diagonal.rows)
            for k, stage in enumerate(layout.stages):
                x, z = buffers.operand(k, diagonal.rows), buffers.product(k, diagonal.rows)
                _product(diagonal, x, packed[k], bias[k], out=z)
                for n in stage:
                    pointwise[n].forward(diagonal)

    def backward(self, buffers: Buffers, weights: Sequence[Tensor]) -> None:
        layout, dH = buffers.layout, buffers.dH
        stages, last = layout.stages, len(layout.stages) - 1
        packed, pointwise = layout.pack_weights(weights), steps(buffers, backward=True)
        for diagonal in reversed(layout.plan.diagonals):
            here = dH[diagonal.rows]
            for k in range(last, -1, -1):
                # Before the stage of dimension n, its columns collect the gradient of the block's own h'_n; after it,
                # that of the incoming h_n.
                later = here if k < last else None
                direct = [(layout.columns[n], pointwise[n].backward(diagonal, later)) for n in stages[k]]
                if later is not None:
                    for columns, _ in direct:
                        here[:, :, columns] = 0
                dz = buffers.product(k, diagonal.rows)
                if buffers.drop is None:
                    _product(diagonal, dz, packed[k], None, out=here, add=later is not None)
                elif later is None:
                    _product(diagonal, dz, packed[k], None, out=here)
                    here *= buffers.drop[diagonal.rows]
                else:
                    _product(diagonal, dz, packed[k], None, out=(read := torch.empty_like(here)))
                    here.addcmul_(read, buffers.drop[diagonal.rows])
                for columns, gradient in direct:
                    if gradient is not None:
                        here[:, :, columns] += gradient


def _product(
    diagonal: Diagonal, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool = False
) -> None:
    """Compute out (r, B, j) = x (r, B, i) times each block's copy of weight (copies, i, j), plus bias or ``out``."""
    product_dtype = None if weight.dtype == x.dtype else weight.dtype
    batched = diagonal.batched_copies
    if batched is not None and len(diagonal.copies) > 1:
        n = len(diagonal.copies)
        x, out = x.view(n, -1, x.shape[-1]), out.view(n, -1, out.shape[-1])
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


wavefront = Packed(Wavefront())
recomputing_wavefront = Packed(Wavefront(), recompute=True)
