"""Sweeps in bfloat16 whose steps read and write it themselves.

Under autocast in bfloat16, ``multiply`` converts every operand to it and every result back. Where the processor has a
bfloat16 unit, these passes over memory take longer than the products. Here a step reads pre-activations in bfloat16,
and writes h' and the gradients of pre-activations in bfloat16 too. The sweep keeps the pre-activations, as they are,
instead of gates in float32, and computes the gates again in the backward pass. Everything else stays in float32, and
the numbers are the same.

Shape legend: as in ``gridlstm.engine.buffers``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gridlstm.engine.buffers import Buffers
from gridlstm.engine.fused import adds_bias
from gridlstm.engine.memory import empty
from gridlstm.engine.plan import Order


def is_low(buffers: Buffers, order: Order) -> bool:
    """Return True if the steps of this sweep read and write bfloat16."""
    layout = buffers.layout
    return (
        layout.product_dtype == torch.bfloat16
        and order == "diagonal"
        and buffers.drop is None
        and not layout.same
        and all(adds_bias(n, buffers) for n in range(len(layout.columns)))
    )


def low_inputs(X: Sequence[Tensor], entries: Sequence[Tensor]) -> list[Tensor]:
    """Return a copy of X in bfloat16 that has the inputs of the grid; the steps fill the rest.

    Args:
        X: as in ``Buffers``, filled with the inputs of the grid.
        entries: for each dimension, the rows of the blocks that have an input.
    """
    copies, filled = [], torch.cat(list(entries))
    for x in X:
        copy = empty(*x.shape, like=x.new_empty(0, dtype=torch.bfloat16))
        copy[filled] = x[filled].to(torch.bfloat16)
        copies.append(copy)
    return copies
