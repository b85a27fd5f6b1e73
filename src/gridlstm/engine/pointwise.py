"""The pointwise part of a cell together with its gradient, in plain PyTorch.

Shape legend: R rows, d size of the dimension, G = num_gates * d.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory
from gridlstm.cells import NonLSTM
from gridlstm.scan import mix


class Inputs(NamedTuple):
    """Inputs of the pointwise part of a cell."""

    z: Tensor
    """(R, G)"""
    h: Tensor
    """(R, d)"""
    m: Tensor
    """(R, memory size)"""
    vectors: tuple[Tensor, ...] = ()
    """each (length,) or (R, length)"""
    keep_h: Tensor | None = None
    """(R, d), as in ``scan.Masks``"""
    keep_m: Tensor | None = None
    """(R, memory size)"""


class PointwiseGradient(NamedTuple):
    """Gradients of one pointwise step, shaped like the inputs."""

    z: Tensor
    h: Tensor | None
    """None for a cell that reads h only through the matrix product"""
    m: Tensor
    vectors: tuple[Tensor, ...] = ()


class Pointwise(Protocol):
    """A cell's pointwise function and its gradient. Both may overwrite ``z``; no other code reads it in between."""

    reads_z: bool
    """False if ``backward`` needs no values in ``z``"""

    def forward(self, inputs: Inputs) -> HiddenMemory:
        """Return (h', m'), and write into ``z`` the values that ``backward`` reads."""

    def restore(self, inputs: Inputs) -> None:
        """Write into ``z`` the same values as ``forward``."""

    def backward(self, inputs: Inputs, new: HiddenMemory, grad: HiddenMemory) -> PointwiseGradient:
        """Return gradients with respect to the inputs, given those with respect to ``new`` = (h', m').

        That of z may be ``inputs.z``, overwritten, or another tensor.
        """


class LSTMPointwise:
    """Equations 1 to 3 and their hand-written derivatives. Replaces ``z`` by the gates (u, f, o, c)."""

    reads_z = True

    def __init__(self, cell: LSTM) -> None:
        self.paper = cell.output == "paper"

    def forward(self, inputs: Inputs) -> HiddenMemory:
        self.restore(inputs)
        u, f, o, c = inputs.z.chunk(4, dim=-1)
        new_m = torch.addcmul(f * inputs.m, u, c)
        return HiddenMemory((o * new_m).tanh_() if self.paper else o * new_m.tanh(), new_m)

    def restore(self, inputs: Inputs) -> None:
        z, d = inputs.z, inputs.m.shape[-1]
        z[:, : 3 * d].sigmoid_()
        z[:, 3 * d :].tanh_()

    def backward(self, inputs: Inputs, new: HiddenMemory, grad: HiddenMemory) -> PointwiseGradient:
        u, f, o, c = inputs.z.chunk(4, dim=-1)
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
        grad_f = out_m * inputs.m * (1 - f)
        grad_c = grad_m * u * (1 - c.square())
        grad_o *= o * (1 - o)
        for gate, gradient in zip((u, f, o, c), (grad_u, grad_f, grad_o, grad_c), strict=True):
            gate.copy_(gradient)
        return PointwiseGradient(inputs.z, None, out_m)


class NonLSTMPointwise:
    """h' = alpha(z), whose derivative is a function of h'."""

    reads_z = False

    def __init__(self, cell: NonLSTM, backward: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.cell = cell
        self.gradient = backward

    def forward(self, inputs: Inputs) -> HiddenMemory:
        return self.cell.pointwise(inputs.z, inputs.h, inputs.m)

    def restore(self, inputs: Inputs) -> None:
        """Do nothing: ``backward`` does not read ``z``."""

    def backward(self, inputs: Inputs, new: HiddenMemory, grad: HiddenMemory) -> PointwiseGradient:
        return PointwiseGradient(self.gradient(grad.h, new.h), None, grad.m)


# Gradient of z, given those of h' and h' itself: the functions that autograd calls.
DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda grad, _: grad,
    "relu": lambda grad, h: torch.ops.aten.threshold_backward(grad, h, 0),
    "tanh": torch.ops.aten.tanh_backward,
    "sigmoid": torch.ops.aten.sigmoid_backward,
}


class LocalAutograd:
    """Any cell: the backward pass runs its pointwise function again, in an autograd graph of this one step."""

    reads_z = True

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def forward(self, inputs: Inputs) -> HiddenMemory:
        z, h, m, vectors, keep_h, keep_m = inputs
        new_h, new_m = self.cell.pointwise(z, h, m, *vectors)
        return HiddenMemory(mix(keep_h, h, new_h), mix(keep_m, m, new_m))

    def restore(self, inputs: Inputs) -> None:
        """Do nothing: ``forward`` does not change ``z``."""

    def backward(self, inputs: Inputs, new: HiddenMemory, grad: HiddenMemory) -> PointwiseGradient:
        with torch.enable_grad():
            z, h, m, *vectors = (x.detach().requires_grad_() for x in (*inputs[:3], *inputs.vectors))
            outputs = self.forward(Inputs(z, h, m, tuple(vectors), inputs.keep_h, inputs.keep_m))
            # Unused inputs get zeros: a cell need not read h or keep a memory.
            grad_z, grad_h, grad_m, *grad_vectors = torch.autograd.grad(
                [x for x in outputs if x.requires_grad],
                [z, h, m, *vectors],
                [g for x, g in zip(outputs, grad, strict=True) if x.requires_grad],
                allow_unused=True,
                materialize_grads=True,
            )
        return PointwiseGradient(grad_z, grad_h, grad_m, tuple(grad_vectors))


def pointwise(cell: Cell, held_back: bool) -> Pointwise:
    """Return the pointwise step of a cell, with the hand-written gradient if there is one.

    Args:
        held_back: true if the dimension has ``keep`` masks.
    """
    if type(cell) is LSTM and not held_back:
        return LSTMPointwise(cell)
    if type(cell) is NonLSTM and not held_back and isinstance(cell.activation, str):
        return NonLSTMPointwise(cell, DERIVATIVES[cell.activation])
    return LocalAutograd(cell)
