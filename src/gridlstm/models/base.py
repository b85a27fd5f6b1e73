"""Base classes of models, and their input projections.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import check_state_vector, fan_in_uniform
from gridlstm.engine.matmul import check_device, check_factor
from gridlstm.errors import UserError, check_above_zero, check_at_least_one

State = Any
"""A NamedTuple of tensors, each (L, B, ...): batch is dimension 1, as in ``torch.nn.LSTM``."""

S = TypeVar("S")


class Model(nn.Module):
    """A network without vocabulary, loss or logging."""

    output_size: int
    """Length of the output vector of one step."""
    init_bound: float | None = None
    """If set, the model started its weights in U(-init_bound, init_bound), and the read-out does too."""

    def set_progress(self, share: float) -> None:
        """Take the completed share of the training, 0 to 1, before each training batch: noise may depend on it."""


class SequenceModel(Model):
    """``forward(x, state) -> (y, state)``: no vocabulary, no loss, no logging.

    x is (B, T) int64 symbols, which stand for one-hot vectors, or (B, T, input_size) floats; y is
    (B, T, output_size). ``state=None`` starts from ``initial_state``. If each call gets the state that the previous one
    returned, a sequence in pieces gives the same result as the whole. The module itself stores no state.
    """

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first step, on the module's device and in its dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_state")

    def state_before(self, state: S | None, batch_size: int) -> S:
        """Return the given state, which may be a plain tuple, or for None the initial state.

        Raises:
            UserError: if the number, shapes, data types or device of its tensors do not fit.
        """
        if state is None:
            return self.initial_state(batch_size)
        expected = self.initial_state(0)  # has no rows, so takes no memory
        names = expected._fields
        if not isinstance(state, tuple | list) or len(state) != len(names):
            got = f"{len(state)} values" if isinstance(state, tuple | list) else type(state).__name__
            raise UserError(f"expected the state that a call returned, a tuple of {', '.join(names)}, got {got}.")
        for name, value, like in zip(names, state, expected, strict=True):
            check_state_vector(name, value, (like.shape[0], batch_size, *like.shape[2:]), like)
        return type(expected)(*state)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    # nn.Module's own __call__ is untyped.
    def __call__(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        return cast(tuple[Tensor, State], super().__call__(x, state))


class VectorModel(Model):
    """``forward(x) -> y``: a network along depth only, without time and so without state.

    x is (B, input_size) floats, the whole input at once, such as the bits of a string; y is (B, output_size).
    """

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    # nn.Module's own __call__ is untyped.
    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, super().__call__(x))


def check_sizes(input_size: int, hidden_size: int, num_layers: int) -> None:
    """Raise UserError for a network without inputs, units or layers."""
    check_at_least_one(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)


@torch.no_grad()
def start_weights_within(model: nn.Module, bound: float) -> None:
    """Initialise every weight with U(-bound, bound) and leave biases unchanged.

    Raises:
        UserError: if the bound is not above 0 and finite.
    """
    check_above_zero(init_bound=bound)
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.uniform_(-bound, bound)


class InputProjection(nn.Module):
    """x -> W x without bias; for symbols, the column of W that the one-hot product selects.

    Args:
        input_size: symbols, or features per step.
        output_size: length of the projection.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.weight = nn.Parameter(torch.empty(input_size, output_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # A one-hot product has a single term, so its fan-in is 1: projections start with unit variance.
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, T) symbols or (B, T, input_size) floats to (B, T, output_size).

        Raises:
            UserError: if the shape, data type or device of x does not fit, or a symbol is out of range. Under autocast,
                x may have another float type than the weights, except float64.
        """
        if x.dim() == 2 and x.dtype in (torch.int64, torch.int32):
            check_device("x", x, self.weight)
            try:
                return F.embedding(x, self.weight)
            except IndexError as error:  # on the CPU; a GPU reports it at the next synchronisation
                low, high = (int(value) for value in x.aminmax())
                raise UserError(f"expected symbols from 0 to {self.input_size - 1}, got {low} to {high}.") from error
        if x.dim() == 3 and x.shape[-1] == self.input_size and x.is_floating_point():
            check_factor("x", x, self.weight)
            return x @ self.weight
        raise UserError(
            f"expected symbols (B, T) of type int64 or int32, or floats (B, T, {self.input_size}), "
            f"got {x.dtype} of shape {tuple(x.shape)}."
        )


class VectorProjection(nn.Linear):
    """x -> W x without bias, for whole vectors x.

    Args:
        input_size: length of x.
        output_size: length of the projection.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fan_in_uniform(self.weight, 1.0)  # projects inputs of unit variance, such as -1 and 1, to unit variance

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, input_size) to (B, output_size).

        Raises:
            UserError: if the shape, data type or device of x does not fit. Under autocast, x may have another float
                type than the weights, except float64.
        """
        if x.dim() != 2 or x.shape[-1] != self.in_features or not x.is_floating_point():
            raise UserError(f"expected floats (B, {self.in_features}), got {x.dtype} of shape {tuple(x.shape)}.")
        check_factor("x", x, self.weight)
        return super().forward(x)
