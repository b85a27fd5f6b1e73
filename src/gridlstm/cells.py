"""Cells other than the paper's LSTM transform. ``gridlstm.cell`` has the LSTM, the equations and the base class.

Shape legend: d size of the dimension, D = the sum of all dimensions' sizes, R rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from gridlstm.cell import LSTM, OUTPUTS, Cell, HiddenMemory, fan_in_uniform, lstm_gates, lstm_memory
from gridlstm.errors import UserError, check_above_zero, check_finite, check_true_or_false


@dataclass(frozen=True)
class PeepholeLSTM(LSTM):
    """LSTM whose gates also see the memory through diagonal weights (Gers et al. 2002).

    u = sigma(z_u + p_u . m), f = sigma(z_f + p_f . m), c = tanh(z_c), m' = f . m + u . c,
    o = sigma(z_o + p_o . m'), then h' as in ``LSTM``. The vector ``peephole`` is [p_u; p_f; p_o] and starts at 0.

    Args:
        peepholes: the gates with a peephole, out of "u", "f" and "o", in the order of ``peephole``.
    """

    peepholes: Literal["ufo", "uf", "uo", "fo", "u", "f", "o"] = "ufo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peepholes not in PEEPHOLES:
            raise UserError(f"peepholes must be one of {', '.join(PEEPHOLES)}, got {self.peepholes!r}.")

    def vector_lengths(self, size: int) -> dict[str, int]:
        return {"peephole": len(self.peepholes) * size}

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        z_u, z_f, z_o, z_c = z.chunk(4, dim=-1)
        p = dict(zip(self.peepholes, vectors[0].chunk(len(self.peepholes), dim=-1), strict=True))

        def gate(name: str, z: Tensor, m: Tensor) -> Tensor:
            return (z + p[name] * m if name in p else z).sigmoid()

        new_m = lstm_memory(gate("u", z_u, m), gate("f", z_f, m), z_c.tanh(), m)
        return HiddenMemory(OUTPUTS[self.output](gate("o", z_o, new_m), new_m), new_m)

    @torch.no_grad()
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        super().reset_parameters(weight, bias)
        vectors[0].zero_()


PEEPHOLES = ("ufo", "uf", "uo", "fo", "u", "f", "o")


@dataclass(frozen=True)
class CoupledLSTM(LSTM):
    """LSTM with coupled input and forget gates (Greff et al. 2017, CIFG): u = 1 - f.

    m' = f . m + (1 - f) . c. Packed gate order (f, o, c): three quarters of the LSTM's weights.
    """

    num_gates: ClassVar[int] = 3

    @property
    def constants(self) -> tuple[float, ...]:
        return super().constants[1:]

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        z_f, z_o, z_c = z.chunk(3, dim=-1)
        f = z_f.sigmoid()
        new_m = lstm_memory(1 - f, f, z_c.tanh(), m)
        return HiddenMemory(OUTPUTS[self.output](z_o.sigmoid(), new_m), new_m)

    @torch.no_grad()
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        fan_in_uniform(weight, self.gain)
        if bias is not None:
            bias.zero_()
            bias.chunk(3, dim=-1)[0].fill_(self.forget_bias)


@dataclass(frozen=True)
class LayerNormLSTM(LSTM):
    """LSTM with layer normalization of each gate's pre-activation and of the memory in the output.

    z_g = gain_g . LN(W_g H) + shift_g for every gate g, m' = f . m + u . c, h' as in ``LSTM`` but computed from
    gain_m . LN(m') + shift_m. The vectors ``gain`` and ``shift`` are packed (u, f, o, c, m) and start at 1 and 0, the
    forget gate's shift at ``forget_bias``. ``shift`` makes ``bias`` redundant, so ``bias=True`` is an error.

    A variant of Ba et al. 2016 (arXiv 1607.06450), who normalize W_h h and W_x x separately and add the two. A block's
    H is one vector, so here its one product is normalized, gate by gate. The memory is normalized as in that paper.

    Args:
        epsilon: added to the variances.
    """

    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias:
            raise UserError("LayerNormLSTM learns a shift for each gate: expected bias=false, got bias=true.")
        check_above_zero(epsilon=self.epsilon)

    @property
    def constants(self) -> tuple[float, ...]:
        return ()

    def vector_lengths(self, size: int) -> dict[str, int]:
        return {"gain": 5 * size, "shift": 5 * size}

    def preactivations(self, z: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Return the normalized pre-activations, (R, 4d) in the order of z = W H."""
        # Not strict: the fifth gain and shift are those of m.
        parts = zip(z.chunk(4, dim=-1), gain.chunk(5, dim=-1), shift.chunk(5, dim=-1), strict=False)
        return torch.cat([self._normalized(*part) for part in parts], dim=-1)

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        gain, shift = vectors
        u, f, o, c = lstm_gates(self.preactivations(z, gain, shift))
        new_m = lstm_memory(u, f, c, m)
        seen = self._normalized(new_m, gain.chunk(5, dim=-1)[4], shift.chunk(5, dim=-1)[4])
        return HiddenMemory(OUTPUTS[self.output](o, seen), new_m)

    def _normalized(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.epsilon) * gain + shift

    @torch.no_grad()
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        fan_in_uniform(weight, self.gain)
        gain, shift = vectors
        gain.fill_(1)
        shift.zero_()
        shift.chunk(5, dim=-1)[1].fill_(self.forget_bias)


@dataclass(frozen=True)
class GRU(Cell):
    """Gated recurrent unit in the reset-after form of cuDNN and ``torch.nn.GRU``; it has no memory vector.

    r = sigma(W_r H + b_r), s = sigma(W_s H + b_s), n = tanh(W_n x + b_n + r . (W_n h + c_n)), h' = (1 - s) . n + s . h

    where h is this dimension's own part of H and x the part of the other dimensions. The learned weight has the rows
    (r, s, n); z = (r, s, n_x, n_h) and the biases keep the two parts of W_n H separate.

    Args:
        bias: learn biases.
        gain: initial weights are uniform with variance gain^2 / D.
    """

    bias: bool = True
    gain: float = 1.0

    num_gates: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_true_or_false(bias=self.bias)
        check_above_zero(gain=self.gain)

    @property
    def has_bias(self) -> bool:
        return self.bias

    def weight_rows(self, size: int) -> int:
        return 3 * size

    def expand_weight(self, weight: Tensor, own: slice) -> Tensor:
        gates, candidate = weight.tensor_split([2 * (own.stop - own.start)], dim=-2)
        is_own = torch.zeros(weight.shape[-1], dtype=torch.bool, device=weight.device)
        is_own[own] = True
        return torch.cat([gates, candidate.masked_fill(is_own, 0), candidate.masked_fill(~is_own, 0)], dim=-2)

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        z_r, z_s, z_x, z_h = z.chunk(4, dim=-1)
        s = z_s.sigmoid()
        n = (z_x + z_r.sigmoid() * z_h).tanh()
        return HiddenMemory((1 - s) * n + s * h, m)

    @torch.no_grad()
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        fan_in_uniform(weight, self.gain)
        if bias is not None:
            bias.zero_()


Activation = Literal["identity", "relu", "tanh", "sigmoid"] | Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def _check_activation(name: Activation) -> None:
    """Raise UserError unless ``name`` is in ``ACTIVATIONS`` or a function that may be called again, in any order."""
    if callable(name):
        owner = getattr(name, "__self__", name)  # __self__ of a bound method
        if isinstance(owner, nn.Module) and any(True for _ in (*owner.parameters(), *owner.buffers())):
            raise UserError(f"activation must have no weights or buffers: a cell cannot store them, got {name!r}.")
        _check_by_calling(name)
    elif not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"activation must be {', '.join(ACTIVATIONS)} or a function of a tensor, got {name!r}.")


@_disable_current_modes()  # under a mode such as FakeTensorMode, tensors may have no values
@torch.inference_mode(False)
@torch.enable_grad()
def _check_by_calling(function: Callable[[Tensor], Tensor]) -> None:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        x = torch.linspace(-3, 3, 32, dtype=torch.float32).view(8, 4).clone()
        unused, version = torch.get_rng_state(), x._version
        try:
            y, again, rows = function(x), function(x), function(x[:3])
            leaf = x.clone().requires_grad_()
            if (differentiable := function(leaf + 0)).requires_grad:
                torch.autograd.grad(differentiable.sum(), leaf, allow_unused=True)
        except Exception as error:
            raise UserError(
                f"activation must accept a tensor of any shape on any device, got {function!r}, which fails for shape "
                f"{tuple(x.shape)} or in its backward pass: {error}"
            ) from error
        drawn = not torch.equal(torch.get_rng_state(), unused)
    if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
        raise UserError(f"activation must keep the shape and the type of its argument, got {function!r}.")
    if y.requires_grad:
        raise UserError(f"activation must not depend on weights: a cell cannot train them, got {function!r}.")
    if x._version != version:
        raise UserError(f"activation must not overwrite its argument, got {function!r}: choose inplace=False.")
    if drawn or not torch.allclose(y, again, rtol=0, atol=0, equal_nan=True):
        raise UserError(
            f"activation must return the same values each time, because the backward pass calls it again, got "
            f"{function!r}. For noise, use a dimension's regularizers."
        )
    if not torch.allclose(y[:3], rows, equal_nan=True):
        raise UserError(f"activation must compute each row independently of the others, got {function!r}.")


def _activation(name: Activation) -> Callable[[Tensor], Tensor]:
    return name if callable(name) else ACTIVATIONS[name]


@dataclass(frozen=True)
class NonLSTM(Cell):
    """A dimension without memory (section 3.3): h' = alpha(V H). With tanh this is a vanilla recurrent network.

    Args:
        activation: alpha: "identity", "relu", "tanh", "sigmoid", or any function of a tensor that keeps its shape,
            computes each row independently, has neither weights nor random numbers, and does not overwrite its
            argument. The backward pass calls it again.
        bias: learn a bias; the paper has none.
        gain: initial weights are uniform with variance gain^2 / D.
    """

    activation: Activation = "identity"
    bias: bool = False
    gain: float = 1.0

    num_gates: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_activation(self.activation)
        check_true_or_false(bias=self.bias)
        check_above_zero(gain=self.gain)

    @property
    def has_bias(self) -> bool:
        return self.bias

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        return HiddenMemory(_activation(self.activation)(z), m)

    @torch.no_grad()
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        fan_in_uniform(weight, self.gain)
        if bias is not None:
            bias.zero_()


@dataclass(frozen=True)
class Carry(Cell):
    """A dimension without a transform: h' = h. It brings its vectors to every block, and has no weights.

    It serves as the depth of a last grid whose output is read along other dimensions: a transform there would change
    nothing.
    """

    num_gates: ClassVar[int] = 0

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        return HiddenMemory(h, m)

    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        """Do nothing: the weight is empty."""


@dataclass(frozen=True)
class Highway(Cell):
    """A highway layer (Srivastava et al. 2015, arXiv 1505.00387): a gate mixes the layer's output with its input.

    t = sigma(W_t H + b_t), h' = t . alpha(W_c H + b_c) + (1 - t) . h. Packed order (t, c).

    Args:
        activation: alpha: "tanh", "relu", or any other activation of ``NonLSTM``.
        gate_bias: initial b_t. Below 0 a layer starts close to the identity: -1 to -3 for 10 to 30 layers.
        gain: initial weights are uniform with variance gain^2 / D.
    """

    activation: Activation = "tanh"
    gate_bias: float = -2.0
    gain: float = 1.0

    num_gates: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_activation(self.activation)
        check_finite(gate_bias=self.gate_bias)
        check_above_zero(gain=self.gain)

    @property
    def has_bias(self) -> bool:
        return True

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        z_t, z_c = z.chunk(2, dim=-1)
        t = z_t.sigmoid()
        return HiddenMemory(t * _activation(self.activation)(z_c) + (1 - t) * h, m)

    @torch.no_grad()
    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        fan_in_uniform(weight, self.gain)
        if bias is not None:
            bias.zero_()
            bias.chunk(2, dim=-1)[0].fill_(self.gate_bias)
