"""The pointwise part of a cell together with its gradient, as the wavefront sweep calls them.

Shape legend: R rows, d size of the dimension, G = num_gates * d.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory


class PointwiseGradient(NamedTuple):
    """Gradients of one pointwise step."""

    z: Tensor
    """(R, G)"""
    h: Tensor | None
    """(R, d); None for a cell that reads h only through the matrix product"""
    m: Tensor
    """(R, memory size)"""


class Pointwise(Protocol):
    """A cell's pointwise function and its gradient. Both may overwrite ``z``, which is theirs until both have run."""

    def forward(self, z: Tensor, h: Tensor, m: Tensor) -> HiddenMemory:
        """(h', m'); leaves in ``z`` what ``backward`` reads there."""

    def backward(self, z: Tensor, h: Tensor, m: Tensor, new: HiddenMemory, grad: HiddenMemory) -> PointwiseGradient:
        """Gradients with respect to z, h and m from those with respect to ``new`` = (h', m')."""


class LSTMPointwise:
    """Equations 1 to 3 and their derivatives, written out. ``z`` is replaced by the gates (u, f, o, c)."""

    def __init__(self, cell: LSTM) -> None:
        self.paper = cell.output == "paper"

    def forward(self, z: Tensor, h: Tensor, m: Tensor) -> HiddenMemory:
        d = m.shape[-1]
        z[:, : 3 * d].sigmoid_()
        z[:, 3 * d :].tanh_()
        u, f, o, c = z.chunk(4, dim=-1)
        new_m = torch.addcmul(f * m, u, c)
        return HiddenMemory((o * new_m).tanh_() if self.paper else o * new_m.tanh(), new_m)

    def backward(self, z: Tensor, h: Tensor, m: Tensor, new: HiddenMemory, grad: HiddenMemory) -> PointwiseGradient:
        u, f, o, c = z.chunk(4, dim=-1)
        if self.paper:
            grad_product = torch.addcmul(grad.h, grad.h * new.h, new.h, value=-1)  # dh' (1 - h'^2)
            grad_o = grad_product * new.m
            grad_m = torch.addcmul(grad.m, grad_product, o)
        else:
            squashed = new.m.tanh()
            grad_o = grad.h * squashed
            grad_m = torch.addcmul(grad.m, grad.h * o, 1 - squashed.square())
        out_m = grad_m * f
        grad_u = grad_m * c * u * (1 - u)
        grad_f = out_m * m * (1 - f)
        grad_c = grad_m * u * (1 - c.square())
        grad_o *= o * (1 - o)
        for gate, gradient in zip((u, f, o, c), (grad_u, grad_f, grad_o, grad_c), strict=True):
            gate.copy_(gradient)
        return PointwiseGradient(z, None, out_m)


class LocalAutograd:
    """Any cell: its pointwise function runs again, inside an autograd graph of this one step."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def forward(self, z: Tensor, h: Tensor, m: Tensor) -> HiddenMemory:
        return self.cell.pointwise(z, h, m)

    def backward(self, z: Tensor, h: Tensor, m: Tensor, new: HiddenMemory, grad: HiddenMemory) -> PointwiseGradient:
        with torch.enable_grad():
            inputs = tuple(x.detach().requires_grad_() for x in (z, h, m))
            outputs = self.cell.pointwise(*inputs)
            # allow_unused and zero gradients: a cell need not read h or keep a memory.
            grad_z, grad_h, grad_m = torch.autograd.grad(
                [x for x in outputs if x.requires_grad],
                inputs,
                [g for x, g in zip(outputs, grad, strict=True) if x.requires_grad],
                allow_unused=True,
                materialize_grads=True,
            )
        z.copy_(grad_z)
        return PointwiseGradient(z, grad_h, grad_m)


def pointwise(cell: Cell) -> Pointwise:
    """The hand-written gradient where there is one."""
    return LSTMPointwise(cell) if type(cell) is LSTM else LocalAutograd(cell)
