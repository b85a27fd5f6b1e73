"""The paper's equations (arXiv 1507.01526, sections 2 and 3) as pure functions, and the cells made of them.

Shape legend: d hidden size of one dimension, D = the sum of all dimensions' sizes, R rows of any leading shape.

Packed gate order, everywhere in this package: **(u, f, o, c)** = input ("update") gate, forget gate, output gate,
candidate, the order of the paper's W = [W^u; W^f; W^o; W^c]. A packed weight is (4d, D), a packed bias (4d,).
``torch.nn.LSTM`` packs (i, f, g, o) = (u, f, c, o).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gridlstm.errors import UserError, check_above_zero, check_finite, check_true_or_false


def lstm_gates(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply equations 1: u, f, o = sigma(z_u), sigma(z_f), sigma(z_o) and c = tanh(z_c), with z = W H (+ b).

    Args:
        z: (R, 4d) pre-activations in the order (u, f, o, c).

    Returns:
        Four tensors of shape (R, d).
    """
    z_u, z_f, z_o, z_c = z.chunk(4, dim=-1)
    return z_u.sigmoid(), z_f.sigmoid(), z_o.sigmoid(), z_c.tanh()


def lstm_memory(u: Tensor, f: Tensor, c: Tensor, m: Tensor) -> Tensor:
    """Apply equation 2: m' = f . m + u . c."""
    return f * m + u * c


def paper_output(o: Tensor, m: Tensor) -> Tensor:
    """Apply equation 3 as printed: h' = tanh(o . m').

    The tanh is outside. Nearly every other LSTM, including cuDNN's, uses ``standard_output`` instead.
    """
    return (o * m).tanh()


def standard_output(o: Tensor, m: Tensor) -> Tensor:
    """Apply the usual LSTM output (Gers et al. 2000): h' = o . tanh(m')."""
    return o * m.tanh()


class HiddenMemory(NamedTuple):
    """A hidden vector and its memory vector."""

    h: Tensor
    m: Tensor


def check_state_vector(name: str, value: object, shape: tuple[int, ...], like: Tensor) -> None:
    """Raise UserError unless ``value`` is a tensor of this shape, with the data type and device of ``like``."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"expected the state's {name} of shape {shape}, got {got}.")
    if (value.dtype, value.device) != (like.dtype, like.device):
        raise UserError(
            f"expected the state's {name} as {like.dtype} on {like.device}, like the network, got "
            f"{value.dtype} on {value.device}. Convert it with .to(...)."
        )


class Cell(ABC):
    """The transform of one dimension of a block: a pure pointwise function of the pre-activations, and its sizes.

    The sweep, not the cell, computes the matrix product z = W H + b, so that one engine serves every cell.
    """

    num_gates: ClassVar[int]
    """Length of z divided by d."""

    @property
    def has_bias(self) -> bool:
        """True if a packed bias of length num_gates * d is learned."""
        return False

    def memory_size(self, size: int) -> int:
        """Return the length of the memory vector for hidden vectors of length ``size``; 0 for a cell without memory."""
        return 0

    @property
    def constants(self) -> tuple[float, ...]:
        """Constants, one per gate, added to the pre-activations if no bias is learned; () for none."""
        return ()

    def constant_bias(self, size: int, like: Tensor) -> Tensor | None:
        """Return ``constants`` as a packed bias (num_gates * d,) with the data type and device of ``like``."""
        return torch.cat([like.new_full((size,), x) for x in self.constants]) if self.constants else None

    def vector_lengths(self, size: int) -> dict[str, int]:
        """Return names and lengths of the learned vectors that ``pointwise`` takes besides z, such as peepholes."""
        return {}

    def weight_rows(self, size: int) -> int:
        """Return the number of rows of the learned weight."""
        return self.num_gates * size

    def expand_weight(self, weight: Tensor, own: slice) -> Tensor:
        """Return the weight of z, (..., num_gates * d, D), from the learned weight (..., weight_rows, D).

        Args:
            own: the columns of H that hold this dimension's own h.
        """
        return weight

    @abstractmethod
    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        """Return (h', m').

        Args:
            z: (R, num_gates * d) pre-activations, including the bias.
            h: (R, d), incoming.
            m: (R, memory_size), incoming.
            vectors: in the order of ``vector_lengths``, each (length,) or (R, length).
        """

    @abstractmethod
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        """Initialise the learned parameters in place."""


def check_cell(name: str, cell: object) -> None:
    """Raise UserError unless ``cell`` is a cell."""
    if not isinstance(cell, Cell):
        raise UserError(f"{name} must be a cell, such as gridlstm.cell.LSTM(), got {cell!r}.")


def fan_in_uniform(weight: Tensor, gain: float) -> None:
    """Fill a weight (..., rows, D) uniformly with variance gain^2 / D."""
    bound = gain * math.sqrt(3 / weight.shape[-1])
    weight.uniform_(-bound, bound)


@dataclass(frozen=True)
class LSTM(Cell):
    """The LSTM transform, equations 1 to 3: (h', m') = LSTM(H, m, W).

    The paper has no bias. A deep grid whose forget gates all start at 1/2 passes 0.5^L of its input to the top, and
    learns late or never. ``forget_bias`` opens the gate: it is the initial value of a learned bias, or with
    ``bias=False`` a constant added to the forget gate's pre-activation.

    Args:
        output: "paper" for h' = tanh(o . m'), "standard" for h' = o . tanh(m').
        bias: learn a bias for each gate.
        forget_bias: see above. At about log L, a path of L gates keeps a constant share of its input.
        gain: initial weights are uniform with variance gain^2 / D.
    """

    output: Literal["paper", "standard"] = "paper"
    bias: bool = False
    forget_bias: float = 1.0
    gain: float = 1.0

    num_gates: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise UserError(f"output must be one of {', '.join(OUTPUTS)}, got {self.output!r}.")
        check_true_or_false(bias=self.bias)
        check_finite(forget_bias=self.forget_bias)
        check_above_zero(gain=self.gain)

    @property
    def has_bias(self) -> bool:
        return self.bias

    def memory_size(self, size: int) -> int:
        return size

    @property
    def constants(self) -> tuple[float, ...]:
        return () if self.bias or not self.forget_bias else (0.0, self.forget_bias, 0.0, 0.0)

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        u, f, o, c = lstm_gates(z)
        m = lstm_memory(u, f, c, m)
        return HiddenMemory(OUTPUTS[self.output](o, m), m)

    @torch.no_grad()
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        fan_in_uniform(weight, self.gain)
        if bias is not None:
            bias.zero_()
            bias.chunk(4, dim=-1)[1].fill_(self.forget_bias)


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"paper": paper_output, "standard": standard_output}
