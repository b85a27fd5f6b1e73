"""The pointwise step of one dimension on one diagonal, in plain PyTorch for any cell.

Shape legend: B batch rows, r blocks of the diagonal, d_n size of the dimension, D = d_1 + ... + d_N.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from gridlstm.cell import HiddenMemory
from gridlstm.engine.buffers import Buffers, put, take
from gridlstm.engine.plan import Diagonal
from gridlstm.engine.pointwise import Inputs, pointwise


class Step(Protocol):
    """Reads and writes the buffers of a sweep for one dimension."""

    def forward(self, diagonal: Diagonal) -> None:
        """Compute h' and m' from z and m of the diagonal's blocks, and write them where successors read them."""

    def restore(self, rows: slice) -> None:
        """Write into z the values that ``backward`` reads, as ``forward`` does; all slots are already filled."""

    def backward(self, diagonal: Diagonal, later: Tensor | None) -> Tensor | None:
        """Replace z by its gradient, write the gradient of m, and return the gradient of h, (r, B, d_n).

        None means that h has no gradient except through the matrix product.

        Args:
            later: (r, B, D) gradients of h' from later stages of the same blocks, or None.
        """


class EagerStep:
    """Any cell, with or without masks."""

    def __init__(self, n: int, buffers: Buffers) -> None:
        self.n = n
        self.buffers = buffers
        self.cell = pointwise(buffers.layout.block.cells[n], held_back=buffers.keep[n] != (None, None))
        self.stage = buffers.layout.stage_of[n]
        self.columns = buffers.layout.columns[n]
        self.leaves = buffers.layout.extents[n] == 1
        """True if all outputs leave the grid, which reads them from X[0]."""

    def forward(self, diagonal: Diagonal) -> None:
        n, to, leading = self.n, diagonal.successors[self.n], (diagonal.size, self.buffers.layout.B)
        h, m = self.cell.forward(self._inputs(diagonal.rows))
        h, m = h.view(*leading, h.shape[-1]), m.view(*leading, m.shape[-1])  # the memory's size may be 0
        copies = self.buffers.low_X if self.buffers.factors is None else None
        for X in (self.buffers.X, copies or ()):
            for k, slots in enumerate(X):
                if k > self.stage:
                    slots[diagonal.rows, :, self.columns] = h
                elif slots is self.buffers.X[0] or not self.leaves:
                    put(slots[:, :, self.columns], to, h.to(slots.dtype))
        put(self.buffers.M[n], to, m)

    def restore(self, rows: slice) -> None:
        self.cell.restore(self.buffers.inputs(self.n, rows))

    def _inputs(self, rows: slice) -> Inputs:
        """Return the inputs of the cell. In a sweep in bfloat16, z is a copy in float32 with the bias."""
        inputs = self.buffers.inputs(self.n, rows)
        if not self.buffers.is_low:
            return inputs
        z = inputs.z.to(inputs.h.dtype)
        if (bias := self.buffers.added_biases[self.n]) is not None:
            z.view(rows.stop - rows.start, self.buffers.layout.B, -1).add_(
                bias[self.buffers.layout.plan.copy_of[rows], None]
            )
        return inputs._replace(z=z)

    def backward(self, diagonal: Diagonal, later: Tensor | None) -> Tensor | None:
        n, buffers, to = self.n, self.buffers, diagonal.successors[self.n]
        grad_h = take(buffers.dH[:, :, self.columns], to)
        if later is not None:
            grad_h = grad_h + later[:, :, self.columns]
        new_h, new_m, grad_m = (
            take(buffer, to) for buffer in (buffers.X[0][:, :, self.columns], buffers.M[n], buffers.dM[n])
        )
        own = buffers.inputs(n, diagonal.rows)
        inputs = self._inputs(diagonal.rows) if buffers.is_low and self.cell.reads_z else own
        if buffers.is_low:
            self.cell.restore(inputs)
        gradient = self.cell.backward(
            inputs,
            HiddenMemory(new_h.flatten(0, 1), new_m.flatten(0, 1)),
            HiddenMemory(grad_h.flatten(0, 1), grad_m.flatten(0, 1)),
        )
        if gradient.z is not own.z:
            own.z.copy_(gradient.z)
        buffers.dM[n][diagonal.rows] = gradient.m.view(grad_m.shape)
        buffers.add_vector_gradients(n, diagonal.rows, gradient.vectors)
        return None if gradient.h is None else gradient.h.view(grad_h.shape)


class Reader:
    """The step of a dimension whose pre-activations another dimension's product computes: see ``Block.same``.

    It runs before its owner's step, which overwrites them. Compiled steps of such dimensions are joint instead: see
    ``fused.Joint``.
    """

    def __init__(self, n: int, buffers: Buffers, step: Step) -> None:
        self.n = n
        self.buffers = buffers
        self.step = step

    def forward(self, diagonal: Diagonal) -> None:
        self._copy(diagonal.rows)
        self.step.forward(diagonal)

    def restore(self, rows: slice) -> None:
        self._copy(rows)
        self.step.restore(rows)

    def backward(self, diagonal: Diagonal, later: Tensor | None) -> Tensor | None:
        return self.step.backward(diagonal, later)

    def _copy(self, rows: slice) -> None:
        layout = self.buffers.layout
        z = self.buffers.z(layout.stage_of[self.n], rows)
        z[:, :, layout.gates[self.n]] = z[:, :, layout.gates[layout.same[self.n]]]


class Owner:
    """The step of a dimension whose pre-activations others read: it adds up their gradients, after all their steps."""

    def __init__(self, n: int, readers: Sequence[int], buffers: Buffers, step: Step) -> None:
        self.n = n
        self.readers = readers
        self.buffers = buffers
        self.step = step

    def forward(self, diagonal: Diagonal) -> None:
        self.step.forward(diagonal)

    def restore(self, rows: slice) -> None:
        self.step.restore(rows)

    def backward(self, diagonal: Diagonal, later: Tensor | None) -> Tensor | None:
        gradient = self.step.backward(diagonal, later)
        layout = self.buffers.layout
        dz = self.buffers.z(layout.stage_of[self.n], diagonal.rows)
        for reader in self.readers:
            dz[:, :, layout.gates[self.n]] += dz[:, :, layout.gates[reader]]
        return gradient
