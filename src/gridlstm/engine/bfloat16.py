"""Operands and results of products in bfloat16, which the compiled steps read and write themselves.

Under autocast in bfloat16, ``multiply`` converts every operand to it and every result back. Where the processor has a
bfloat16 unit, these passes over memory take longer than the products. Here a step reads pre-activations in bfloat16,
and writes h' and the gradients of pre-activations in bfloat16 too. Everything else stays in float32, and the numbers
are the same.

Shape legend: as in ``gridlstm.engine.buffers``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gridlstm.engine.memory import empty


@dataclass(frozen=True)
class Low:
    """Buffers in bfloat16.

    Args:
        X: copy of ``Buffers.X``, each (rows, B, D).
        Z: each stage's pre-activations of the blocks that are computed next (r, B, P); in the backward pass, gradients
            of all pre-activations (C, B, P).
    """

    X: Sequence[Tensor]
    Z: Sequence[Tensor]


def low_forward(X: Sequence[Tensor], products: Sequence[int], at_once: int, entries: Sequence[Tensor]) -> Low:
    """Return buffers for the forward pass, with the inputs of the grid.

    Args:
        X: as in ``Buffers``, filled with the inputs of the grid.
        products: P of each stage.
        at_once: the most blocks that are computed together.
        entries: rows of the blocks that have an input, for each dimension.
    """
    copies = []
    filled = torch.cat(list(entries))  # their other columns are not filled yet, and are written before they are read
    for x in X:
        copy = _empty(*x.shape, like=x)
        copy[filled] = x[filled].to(torch.bfloat16)
        copies.append(copy)
    return Low(copies, [_empty(at_once, X[0].shape[1], P, like=X[0]) for P in products])


def low_backward(X: Sequence[Tensor], products: Sequence[int], blocks: int) -> Low:
    """Return buffers for the backward pass.

    Args:
        X: those of the forward pass.
        products: P of each stage.
        blocks: C.
    """
    return Low(X, [_empty(blocks, X[0].shape[1], P, like=X[0]) for P in products])


def _empty(*shape: int, like: Tensor) -> Tensor:
    return empty(*shape, like=like.new_empty(0, dtype=torch.bfloat16))
