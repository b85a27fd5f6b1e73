"""The sweep layer after layer along the last axis, such as depth.

Within a layer, only the other dimensions form a chain, and only through their own columns of H. The last dimension's
share of their pre-activations, and the whole last dimension, are products over all rows of the layer: three quarters of
a 2-D block's arithmetic. With weights untied along the last axis, the products of a diagonal have only B rows, and this
sweep is much faster. With tied weights, a diagonal is faster.

Shape legend: as in ``gridlstm.engine.buffers``; a layer has r blocks.
"""

from collections.abc import Sequence

from torch import Tensor

from gridlstm.engine.buffers import Buffers, by_copy
from gridlstm.engine.fused import chained_step
from gridlstm.engine.matmul import affine, multiply
from gridlstm.engine.packed import Packed, steps
from gridlstm.engine.plan import Diagonal, Order
from gridlstm.engine.steps import Step
from gridlstm.scan import Block


def layer_major_fits(block: Block) -> bool:
    """Return True if the last dimension can be computed after a layer's other dimensions."""
    last = len(block.cells) - 1
    return last > 0 and last in block.stages[-1] and set(block.untied) <= {last}


class _Layer:
    """Products of one layer. Weights are not packed, because packing all layers would take as long as a small batch."""

    def __init__(
        self, buffers: Buffers, layer: Diagonal, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
    ) -> None:
        layout, copy = buffers.layout, layer.copies[0][0]
        self.buffers = buffers
        self.rows = layer.rows
        self.product_dtype = layout.product_dtype
        self.forward_dtype = None if buffers.is_low else layout.product_dtype
        """In a sweep in bfloat16, operands and z have this type already."""
        self.weights = [by_copy(w)[copy].to(layout.product_dtype or w.dtype) for w in weights]  # (G_n, D)
        self.biases = [None if bias is None else bias.reshape(-1, bias.shape[-1])[copy] for bias in biases]

    def z(self, n: int, rows: slice) -> Tensor:
        """Return dimension n's part of Z with one axis for blocks and batch rows: (r B, G_n)."""
        layout = self.buffers.layout
        return self.buffers.z(layout.stage_of[n], rows)[:, :, layout.gates[n]].flatten(0, 1)

    def read(self, n: int, rows: slice, part: slice) -> Tensor:
        """Return some columns of the input of dimension n's product: (r B, columns)."""
        buffers, k = self.buffers, self.buffers.layout.stage_of[n]
        if buffers.low_X is not None:
            return buffers.low_X[k][rows, :, part].flatten(0, 1)
        return buffers.factored(buffers.X[k][rows, :, part], rows, part).flatten(0, 1)

    def give_back(self, n: int, rows: slice, part: slice, weight: Tensor, add: bool = True) -> None:
        """Add to some columns of dH the gradient through dimension n's product, with weights (G_n, columns)."""
        dz, buffers = self.z(n, rows), self.buffers
        if buffers.factors is None or not buffers.factors.change(part):
            multiply(dz, weight, buffers.dH[rows].flatten(0, 1)[:, part], self.product_dtype, add)
            return
        gradient = weight.new_empty(rows.stop - rows.start, buffers.layout.B, weight.shape[-1])
        multiply(dz.to(weight.dtype), weight, gradient.flatten(0, 1), None)
        buffers.factors.of(rows, part).times_into(buffers.dH[rows, :, part], gradient, add)

    def forward_steps(self, diagonals: Sequence[Diagonal], pointwise: Sequence[Step], before: slice) -> None:
        """Compute the other dimensions step by step, given all of z but the product of their columns, ``before``."""
        layout, last = self.buffers.layout, len(self.weights) - 1
        # Contiguous and transposed, because every step of the chain multiplies few rows by it.
        recurrent = [weight[:, before].t().contiguous() for weight in self.weights[:last]]
        for diagonal in diagonals:
            for stage in layout.block.stages:
                for n in (n for n in stage if n != last):
                    x = self.read(n, diagonal.rows, before)
                    multiply(x, recurrent[n], self.z(n, diagonal.rows), self.forward_dtype, add=True)
                    pointwise[n].forward(diagonal)

    def backward_steps(self, diagonals: Sequence[Diagonal], pointwise: Sequence[Step], before: slice) -> None:
        """Compute gradients of the same steps, the last one first."""
        layout, last = self.buffers.layout, len(self.weights) - 1
        recurrent, stages = [weight[:, before].contiguous() for weight in self.weights[:last]], layout.block.stages
        for diagonal in reversed(diagonals):
            here = self.buffers.dH[diagonal.rows]
            for k in range(len(stages) - 1, -1, -1):
                for n in (n for n in stages[k] if n != last):
                    # Before its stage, a dimension's columns hold the gradient of the block's own h'.
                    later = here if k < layout.stage_of[last] else None
                    own = pointwise[n].backward(diagonal, later)
                    if later is not None:
                        here[:, :, layout.columns[n]].zero_()
                    if own is not None:
                        here[:, :, layout.columns[n]] += own
                for n in (n for n in stages[k] if n != last):
                    self.give_back(n, diagonal.rows, before, recurrent[n])


class LayerMajor:
    """The schedule."""

    order: Order = "layer"

    def forward(self, buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        layout, pointwise = buffers.layout, steps(buffers)
        last, columns, everything = len(layout.columns) - 1, layout.columns[-1], slice(0, layout.D)
        before = slice(0, columns.start)  # the other dimensions' columns
        chained = chained_step(pointwise[0], buffers)
        for group, diagonals in layout.plan.layers:
            buffers.begin(group.rows)
            layer = _Layer(buffers, group, weights, biases)
            for n in range(last):
                # Contiguous, because oneDNN would otherwise make a transposed copy, which takes longer.
                x, weight = layer.read(n, group.rows, columns), layer.weights[n][:, columns].contiguous()
                affine(x, weight.t(), layer.biases[n], layer.z(n, group.rows), layer.forward_dtype)
            if chained is not None:
                chained.forward_chain(group.rows, layer.weights[0][:, before].t())
            else:
                layer.forward_steps(diagonals, pointwise, before)
            x, weight = layer.read(last, group.rows, everything), layer.weights[last].t()
            affine(x, weight, layer.biases[last], layer.z(last, group.rows), layer.forward_dtype)
            pointwise[last].forward(group)

    def backward(self, buffers: Buffers, weights: Sequence[Tensor]) -> None:
        layout, dH = buffers.layout, buffers.dH
        last, columns, everything = len(layout.columns) - 1, layout.columns[-1], slice(0, layout.D)
        before = slice(0, columns.start)
        pointwise = steps(buffers, backward=True)
        chained = chained_step(pointwise[0], buffers)
        for group, diagonals in reversed(layout.plan.layers):
            layer = _Layer(buffers, group, weights, [None] * (last + 1))
            direct = pointwise[last].backward(group, None)
            layer.give_back(last, group.rows, everything, layer.weights[last], add=False)
            if direct is not None:
                dH[group.rows, :, columns] += direct
            if chained is not None:
                chained.backward_chain(group.rows, layer.weights[0][:, before])
            else:
                layer.backward_steps(diagonals, pointwise, before)
            for n in range(last):
                layer.give_back(n, group.rows, columns, layer.weights[n][:, columns])


layer_major = Packed(LayerMajor())
