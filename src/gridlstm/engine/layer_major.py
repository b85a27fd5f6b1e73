"""Layer after layer along the last axis, such as depth.

The memory of the last dimension never crosses a layer. So within a layer only the other dimensions form a chain, and
only through their own columns of H: the last dimension's share of their pre-activations, and the whole last dimension,
are products over all rows of the layer. Of a 2-D block's arithmetic three quarters are in such products. With weights
untied along the last axis, where a diagonal of the grid has products of B rows only, this is much faster; with tied
weights a diagonal is better.

Shape legend: as in ``gridlstm.engine.buffers``; a layer has r blocks.
"""

from collections.abc import Sequence

from torch import Tensor

from gridlstm.engine.buffers import Buffers
from gridlstm.engine.matmul import multiply
from gridlstm.engine.packed import Packed, steps
from gridlstm.engine.plan import Order
from gridlstm.scan import Block


def layer_major_fits(block: Block) -> bool:
    """Whether the last dimension can wait until a layer's other dimensions are done."""
    last = len(block.cells) - 1
    return last > 0 and last in block.stages[-1] and set(block.untied) <= {last}


class LayerMajor:
    """The schedule."""

    order: Order = "layer"

    def forward(
        self, buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None], again: bool
    ) -> None:
        layout, pointwise = buffers.layout, steps(buffers)
        columns, last = layout.columns[-1], len(layout.columns) - 1
        before = slice(0, columns.start)  # the other dimensions' columns
        packed, biases = layout.pack_weights_transposed(weights), layout.pack_biases(biases, buffers.X[0])
        for layer, diagonals in layout.plan.layers:
            copy = layer.copies[0][0]
            for k, stage in enumerate(layout.block.stages):
                bias = biases[k]
                z = buffers.Z[k][layer.rows].flatten(0, 1)
                for n in (n for n in stage if n != last):
                    gates = layout.gates[n]
                    x = buffers.operand(k, layer.rows).flatten(0, 1)[:, columns]
                    multiply(x, packed[k][copy, columns, gates], z[:, gates], layout.lowered)
                    if bias is not None:
                        z[:, gates] += bias[copy, gates]
            # Contiguous, because every step of the chain reads them again.
            recurrent = {n: packed[layout.stage_of[n]][copy, before, layout.gates[n]].contiguous() for n in range(last)}
            for diagonal in diagonals:
                for k, stage in enumerate(layout.block.stages):
                    x = buffers.operand(k, diagonal.rows).flatten(0, 1)[:, before]
                    z = buffers.Z[k][diagonal.rows].flatten(0, 1)
                    for n in (n for n in stage if n != last):
                        multiply(x, recurrent[n], z[:, layout.gates[n]], layout.lowered, add=True)
                        if again:
                            pointwise[n].restore(diagonal)
                        else:
                            pointwise[n].forward(diagonal)
            k, gates = layout.stage_of[last], layout.gates[last]
            z = buffers.Z[k][layer.rows].flatten(0, 1)
            multiply(
                buffers.operand(k, layer.rows).flatten(0, 1), packed[k][copy, :, gates], z[:, gates], layout.lowered
            )
            if (bias := biases[k]) is not None:
                z[:, gates] += bias[copy, gates]
            if again:
                pointwise[last].restore(layer)
            else:
                pointwise[last].forward(layer)

    def backward(self, buffers: Buffers, weights: Sequence[Tensor]) -> None:
        layout, dH, drop = buffers.layout, buffers.dH, buffers.drop
        columns, last = layout.columns[-1], len(layout.columns) - 1
        before, stages = slice(0, columns.start), layout.block.stages
        packed, pointwise = layout.pack_weights(weights), steps(buffers, backward=True)

        dtype = packed[0].dtype

        def read(rows: slice, part: slice, gradient: Tensor) -> Tensor:
            """Gradient of some columns of X from that of what the product read: (r, B, columns)."""
            gradient = gradient.view(-1, layout.B, gradient.shape[-1])
            return gradient if drop is None else gradient * drop[rows, :, part]

        for layer, diagonals in reversed(layout.plan.layers):
            copy = layer.copies[0][0]
            k, gates, everything = layout.stage_of[last], layout.gates[last], slice(0, layout.D)
            direct = pointwise[last].backward(layer, None)
            dz = buffers.Z[k][layer.rows, :, gates].flatten(0, 1)
            dH[layer.rows] = read(layer.rows, everything, dz.to(dtype) @ packed[k][copy, gates])
            if direct is not None:
                dH[layer.rows, :, columns] += direct
            recurrent = {n: packed[layout.stage_of[n]][copy, layout.gates[n], before].contiguous() for n in range(last)}
            for diagonal in reversed(diagonals):
                here = dH[diagonal.rows]
                for k in range(len(stages) - 1, -1, -1):
                    for n in (n for n in stages[k] if n != last):
                        # Until a dimension's stage its columns hold the gradient of the block's own h'.
                        later = here if k < layout.stage_of[last] else None
                        own = pointwise[n].backward(diagonal, later)
                        if later is not None:
                            here[:, :, layout.columns[n]] = 0
                        if own is not None:
                            here[:, :, layout.columns[n]] += own
                    for n in (n for n in stages[k] if n != last):
                        dz = buffers.Z[k][diagonal.rows, :, layout.gates[n]].flatten(0, 1)
                        here[:, :, before] += read(diagonal.rows, before, dz.to(dtype) @ recurrent[n])
            for n in range(last):
                k, gates = layout.stage_of[n], layout.gates[n]
                dz = buffers.Z[k][layer.rows, :, gates].flatten(0, 1)
                dH[layer.rows, :, columns] += read(layer.rows, columns, dz.to(dtype) @ packed[k][copy, gates, columns])


layer_major = Packed(LayerMajor())
