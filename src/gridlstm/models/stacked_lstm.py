"""The paper's baseline, the stacked LSTM (section 2.2): memory along time only.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import LSTM, Cell
from gridlstm.grid import Transform
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes


class StackedLSTMState(NamedTuple):
    """What travels along time: the hidden and memory vectors of every layer."""

    h: Tensor
    """(L, B, d)"""
    m: Tensor
    """(L, B, d)"""


class StackedLSTM(SequenceModel):
    """L layers of (h', m') = LSTM(H, m, W) with H = [x; h], x the layer below's h' (the first: the projected input).

    The output is the top h', of length d. Each layer has 8 d^2 weights.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L.
        time: the cell along time.
        tied: share one weight set over all layers.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        time: Cell = LSTM(),
        tied: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(hidden_size, num_layers)
        self.input_size = input_size
        self.output_size = hidden_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell = time
        self.input = InputProjection(input_size, hidden_size)
        self.layers = Transform(
            time, hidden_size, 2 * hidden_size, slice(hidden_size, None), copies=() if tied else (num_layers,)
        )
        self.tied = tied

    def initial_state(self, batch_size: int) -> StackedLSTMState:
        zeros = self.input.weight.new_zeros
        return StackedLSTMState(
            zeros(self.num_layers, batch_size, self.hidden_size),
            zeros(self.num_layers, batch_size, self.cell.memory_size(self.hidden_size)),
        )

    def forward(self, x: Tensor, state: StackedLSTMState | None = None) -> tuple[Tensor, StackedLSTMState]:
        if state is None:
            state = self.initial_state(x.shape[0])
        y = self.input(x).transpose(0, 1)  # (T, B, d)
        last_h, last_m = [], []
        copies = self.layers.packed.copies(0 if self.tied else 1)
        for layer in range(self.num_layers):
            weight, bias, vectors = copies[0 if self.tied else layer]
            from_below, from_before = weight.split(self.hidden_size, dim=-1)  # 2 x (4d, d)
            z = F.linear(y, from_below, bias)  # (T, B, 4d): no step of it waits for another
            h, m = state.h[layer], state.m[layer]
            outputs = []
            for z_t in z.unbind():
                h, m = self.cell.pointwise(z_t + F.linear(h, from_before), h, m, *vectors)
                outputs.append(h)
            y = torch.stack(outputs)
            last_h.append(h)
            last_m.append(m)
        return y.transpose(0, 1), StackedLSTMState(torch.stack(last_h), torch.stack(last_m))
