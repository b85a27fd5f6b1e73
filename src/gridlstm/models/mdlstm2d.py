"""A multidimensional LSTM over time and depth, which the paper compares with the 2-D grid (section 2.3).

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import Literal

import torch
from torch import Tensor

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.mdlstm import MDLSTM
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes
from gridlstm.models.grid2d import Grid2dState


class MDLSTM2d(SequenceModel):
    """``Grid2d`` with the block of ``MDLSTM``: H = [h_time; h_depth], m' = f_1 . m_time + f_2 . m_depth + u . c.

    Input and output are as in ``Grid2d``: each step is projected into the h and m that enter the first layer, and
    y = [h; m] of the last layer. All blocks share one set of 10 d^2 weights.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L, the blocks along depth.
        cell: output equation, biases and initial values of each gate.
        sweep: see ``MDLSTM``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        cell: LSTM = LSTM(),
        sweep: Literal["auto", "reference"] = "auto",
    ) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.output_size = 2 * hidden_size
        self.input = InputProjection(input_size, 2 * hidden_size)
        self.blocks = MDLSTM(0, hidden_size, 2, cell, sweep=sweep)

    def initial_state(self, batch_size: int) -> Grid2dState:
        zeros = self.input.weight.new_zeros(2, self.num_layers, batch_size, self.hidden_size)
        return Grid2dState(*zeros)

    def forward(self, x: Tensor, state: Grid2dState | None = None) -> tuple[Tensor, Grid2dState]:
        bottom = HiddenMemory(*self.input(x).transpose(0, 1).chunk(2, dim=-1))  # 2 x (T, B, d)
        state = self.state_before(state, x.shape[0])
        no_input = bottom.h.new_zeros(x.shape[1], self.num_layers, x.shape[0], 0)
        h, m = self.blocks(no_input, [HiddenMemory(*state), bottom])  # (T, L, B, d)
        return torch.cat([h[:, -1], m[:, -1]], dim=-1).transpose(0, 1), Grid2dState(h[-1], m[-1])
