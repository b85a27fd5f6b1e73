"""The recurrent highway network (Zilly, Srivastava, Koutnik, Schmidhuber 2017, arXiv 1607.03474).

Shape legend: B batch rows, T time steps, L recurrence depth, d hidden size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import fan_in_uniform
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes


class RecurrentHighwayState(NamedTuple):
    """State carried between time steps: one vector at any depth."""

    s: Tensor
    """(1, B, d)"""


class RecurrentHighway(SequenceModel):
    """L highway layers between one step and the next, equations 6 to 9, with the carry gate coupled: c = 1 - t.

    With s_0 the previous step's s_L, and l = 1 ... L (only the first layer reads the input)::

        h_l = tanh (W_H x [l = 1] + R_{H_l} s_{l-1} + b_{H_l})
        t_l = sigma(W_T x [l = 1] + R_{T_l} s_{l-1} + b_{T_l})
        s_l = h_l . t_l + s_{l-1} . (1 - t_l)

    The output is s_L.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L, the paper's recurrence depth.
        transform_bias: the initial b_T; below zero, layers initially carry the state through.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, transform_bias: float = -2.0) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.input = InputProjection(input_size, hidden_size)
        self.from_below = nn.Linear(hidden_size, 2 * hidden_size, bias=False)  # packed order: H, T
        self.weight = nn.Parameter(torch.empty(num_layers, 2 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_layers, 2 * hidden_size))
        with torch.no_grad():
            fan_in_uniform(self.from_below.weight, gain=0.5**0.5)
            fan_in_uniform(self.weight, gain=1.0)
            fan_in_uniform(self.weight[0], gain=0.5**0.5)  # x and s together are the fan-in
            self.bias.zero_()
            self.bias[:, hidden_size:] = transform_bias

    def initial_state(self, batch_size: int) -> RecurrentHighwayState:
        return RecurrentHighwayState(self.input.weight.new_zeros(1, batch_size, self.hidden_size))

    def forward(self, x: Tensor, state: RecurrentHighwayState | None = None) -> tuple[Tensor, RecurrentHighwayState]:
        y = self.input(x)  # (B, T, d)
        s = self.state_before(state, len(y)).s[0]
        layers = list(zip(self.weight.unbind(), self.bias.unbind(), strict=True))
        outputs = []
        for z in self.from_below(y).unbind(1):
            for n, (weight, bias) in enumerate(layers):
                pre = F.linear(s, weight, bias)
                z_h, z_t = (pre + z if n == 0 else pre).chunk(2, dim=-1)
                s = s + z_t.sigmoid() * (z_h.tanh() - s)
            outputs.append(s)
        return torch.stack(outputs, dim=1), RecurrentHighwayState(s[None])
