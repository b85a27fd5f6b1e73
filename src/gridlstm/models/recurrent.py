"""The vanilla recurrent network and the GRU: PyTorch's own modules as models of this package.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import Literal, NamedTuple, Self

from torch import Tensor, nn

from gridlstm.errors import UserError
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes
from gridlstm.models.torch_rnn import run_rnn


class HiddenState(NamedTuple):
    """State carried between time steps in a network without memory vectors."""

    h: Tensor
    """(L, B, d)"""


class Recurrent(SequenceModel):
    """L layers of a module of ``torch.nn``; the first reads the projected input, the others the h' of the layer below.

    The output is the top h', of length d. PyTorch initializes the weights in U(-1/sqrt(d), 1/sqrt(d)).

    Args:
        input_size: symbols, or features per step.
        layers: ``torch.nn.RNN`` or ``torch.nn.GRU`` with input and hidden size d.
    """

    def __init__(self, input_size: int, layers: nn.RNN | nn.GRU) -> None:
        super().__init__()
        self.input_size = input_size
        self.output_size = layers.hidden_size
        self.input = InputProjection(input_size, layers.hidden_size)
        self.layers = layers

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        # cuDNN saves tensors for the backward pass only in training mode, and dynamic evaluation takes gradients in
        # evaluation mode. The layers have no dropout, so results do not change.
        self.layers.train()
        return self

    def initial_state(self, batch_size: int) -> HiddenState:
        return HiddenState(self.input.weight.new_zeros(self.layers.num_layers, batch_size, self.layers.hidden_size))

    def forward(self, x: Tensor, state: HiddenState | None = None) -> tuple[Tensor, HiddenState]:
        y = self.input(x)
        state = self.state_before(state, len(y))
        y, h = run_rnn(self.layers, y, state.h.contiguous())
        # Under autocast the kernel returns lower precision; the state keeps its own.
        return y, HiddenState(h.to(state.h.dtype))


class RNN(Recurrent):
    """Vanilla (Elman 1990) network: h' = alpha(W x + b + V h + c), 2 d^2 weights per layer.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L.
        activation: alpha, "tanh" or "relu".
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, activation: Literal["tanh", "relu"] = "tanh"
    ) -> None:
        check_sizes(input_size, hidden_size, num_layers)
        if activation not in ("tanh", "relu"):
            raise UserError(f"activation must be tanh or relu, got {activation!r}.")
        super().__init__(
            input_size, nn.RNN(hidden_size, hidden_size, num_layers, nonlinearity=activation, batch_first=True)
        )


class GRU(Recurrent):
    """Gated recurrent units (Cho et al. 2014), reset after the product as in cuDNN, 6 d^2 weights per layer:

    r = sigma(W_r x + V_r h + b_r), s = sigma(W_s x + V_s h + b_s), n = tanh(W_n x + b_n + r . (V_n h + c_n)),
    h' = (1 - s) . n + s . h.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        check_sizes(input_size, hidden_size, num_layers)
        super().__init__(input_size, nn.GRU(hidden_size, hidden_size, num_layers, batch_first=True))
