"""Two stages in one product, for grids with priority whose steps are too small to keep a device busy.

A diagonal with priority takes two sequential products, because the second stage needs the first stage's h'. But the
second stage of a diagonal and the first stage of the next are independent if the prioritized dimensions advance at half
the pace. Block p is in group s = sum_n pace_n p_n, where pace_n is 1 for a dimension of the first stage and 2 for one
of the second. Step s computes the first stage of group s together with the second stage of group s - 1, as a batch of
two products. A grid of time and depth then takes T + 2 L - 1 steps instead of 2 (T + L - 1).

Shape legend: as in ``gridlstm.engine.buffers``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gridlstm.engine.buffers import Buffers, Layout
from gridlstm.engine.matmul import affine, multiply
from gridlstm.engine.packed import Packed, steps
from gridlstm.engine.plan import Diagonal, Order
from gridlstm.scan import Block


def half_step_fits(block: Block) -> bool:
    """Return True if the block has two stages with equally many gates, and one weight copy."""
    gates = [sum(block.cells[n].num_gates * block.sizes[n] for n in stage) for stage in block.stages]
    return len(gates) == 2 and gates[0] == gates[1] and not block.untied


class HalfStep:
    """The schedule. In every stack of two, the later stage comes first: see ``_window``."""

    order: Order = "half-step"

    def forward(self, buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        layout, pointwise = buffers.layout, steps(buffers)
        packed = _later_first(layout.pack_weights_transposed(weights))  # (2, D, G)
        zero = buffers.X[0].new_zeros(1, layout.num_gates[0])
        bias = _later_first([zero if b is None else b for b in layout.pack_biases(biases, buffers.X[0])])[:, None]
        for late, early in _pipeline(layout):
            shared = _shared(late, early, buffers)
            if shared:
                x, z = (_window(late, early, shared, *source) for source in (buffers.X[::-1], buffers.Z[::-1]))
                affine(x, packed, bias, z, layout.product_dtype)
            for k, rows in _rest(late, early, shared):
                x, z = buffers.operand(k, rows).flatten(0, 1), buffers.z(k, rows).flatten(0, 1)
                affine(x, packed[1 - k], bias[1 - k, 0], z, layout.product_dtype)
            for k, group in ((0, early), (1, late)):
                if group is not None:
                    for n in layout.block.stages[k]:
                        pointwise[n].forward(group)

    def backward(self, buffers: Buffers, weights: Sequence[Tensor]) -> None:
        layout, dH = buffers.layout, buffers.dH
        dH[: layout.plan.blocks].zero_()
        packed, pointwise = _later_first(layout.pack_weights(weights)), steps(buffers, backward=True)  # (2, G, D)
        for late, early in reversed(_pipeline(layout)):
            direct = []
            for k, group in ((1, late), (0, early)):
                if group is None:
                    continue
                # Before its stage, a dimension's columns collect the gradient of the block's own h'.
                here = dH[group.rows]
                own = [
                    (layout.columns[n], pointwise[n].backward(group, here if k == 0 else None))
                    for n in layout.block.stages[k]
                ]
                if k == 0:
                    for columns, _ in own:
                        here[:, :, columns].zero_()
                direct += [(here[:, :, columns], gradient) for columns, gradient in own if gradient is not None]
            shared = _shared(late, early, buffers)
            if shared:
                dz, both = _window(late, early, shared, *buffers.Z[::-1]), _window(late, early, shared, dH, dH)
                multiply(dz, packed, both, layout.product_dtype, add=True)
            for k, rows in _rest(late, early, shared):
                read = dH[rows] if buffers.factors is None else torch.zeros_like(dH[rows])
                dz = buffers.z(k, rows).flatten(0, 1)
                multiply(dz, packed[1 - k], read.flatten(0, 1), layout.product_dtype, add=True)
                if buffers.factors is not None:
                    buffers.factors.of(rows).times_into(dH[rows], read, add=True)
            for into, gradient in direct:
                into += gradient


def _pipeline(layout: Layout) -> list[tuple[Diagonal | None, Diagonal | None]]:
    """Return (late, early) for every step, which computes the second stage of late and the first stage of early."""
    groups: list[Diagonal | None] = list(layout.plan.diagonals)
    if all(layout.extents[n] == 1 for n in layout.block.stages[0]):
        # No dimension advances at full pace, so every second group is empty.
        groups = [slot for group in groups for slot in (group, None)]
    return list(zip([None, *groups], [*groups, None], strict=True))


def _later_first(stages: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(reversed(stages)))


def _shared(late: Diagonal | None, early: Diagonal | None, buffers: Buffers) -> int:
    """Return the number of blocks of each group in the batch of two: the size of the smaller group."""
    return 0 if late is None or early is None or buffers.factors is not None else min(late.size, early.size)


def _rest(late: Diagonal | None, early: Diagonal | None, shared: int) -> Iterator[tuple[int, slice]]:
    """Yield the stage and the rows of the blocks that are not in the batch."""
    for k, group in ((1, late), (0, early)):
        if group is not None and group.size > shared:
            yield k, slice(group.rows.start + shared, group.rows.stop)


def _window(late: Diagonal | None, early: Diagonal | None, shared: int, first: Tensor, second: Tensor) -> Tensor:
    """Return rows of two stages as one batch, (2, shared * B, width), without copying.

    Both stages share one storage, with the later stage first (``Buffers``). The rows of its group also come before the
    rows of the other group. So the distance between the two is positive, as a stride must be.
    """
    assert late is not None
    assert early is not None
    a = first[late.rows.start : late.rows.start + shared].flatten(0, 1)
    b = second[early.rows.start : early.rows.start + shared].flatten(0, 1)
    return a.as_strided((2, *a.shape), (b.storage_offset() - a.storage_offset(), *a.stride()))


half_step = Packed(HalfStep())
