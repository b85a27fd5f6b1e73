"""The 2-LSTM as a model for tasks: symbols or vectors in, [h; m] out.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.engine.dispatch import SweepName
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes, start_weights_within
from gridlstm.regularizers import Regularizer
from gridlstm.time_depth import TimeDepthGrid


class Grid2dState(NamedTuple):
    """State carried between time steps: the hidden and memory vectors of every layer."""

    h: Tensor
    """(L, B, d)"""
    m: Tensor
    """(L, B, d)"""


class Grid2d(SequenceModel):
    """Grid of LSTM cells along time and along depth.

    Each step's input is projected into the hidden and memory vectors that enter the first layer along depth. The output
    is the hidden and memory vectors that leave the last layer: y = [h; m] of length 2d.

    The tied network of 1,000 units with 205 symbols has 16.4 M parameters at any depth, 16.8 M with a task's read-out.

    Args:
        input_size: symbols, or features per step.
        hidden_size, num_layers, time, depth, tied, shared, priority, sweep, time_regularizers, depth_regularizers,
            dropout: see ``gridlstm.time_depth.TimeDepthGrid``.
        memory_at_ends: project the input into the memory too, and make the top memory part of the output, as the paper
            does. False, as in much public code: depth's memory starts at 0, and y is only the top h.
        init_bound: initialize all weights in U(-init_bound, init_bound), including those of a task's read-out; None
            for the initialization of each cell.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        time: Cell = LSTM(),
        depth: Cell = LSTM(),
        tied: bool | Sequence[str] = True,
        shared: bool = False,
        priority: str | None = None,
        sweep: SweepName = "auto",
        time_regularizers: Sequence[Regularizer] = (),
        depth_regularizers: Sequence[Regularizer] = (),
        dropout: float = 0.0,
        memory_at_ends: bool = True,
        init_bound: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        check_cell("time", time)
        check_cell("depth", depth)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.memory_sizes = time.memory_size(hidden_size), depth.memory_size(hidden_size)
        self.memory_at_ends = memory_at_ends
        self.output_size = hidden_size + (self.memory_sizes[1] if memory_at_ends else 0)
        self.input = InputProjection(input_size, self.output_size)
        self.grid = TimeDepthGrid(
            hidden_size, num_layers, time, depth, tied, shared, priority, sweep, time_regularizers, depth_regularizers,
            dropout,
        )  # fmt: skip
        self.init_bound = init_bound
        if init_bound is not None:
            start_weights_within(self, init_bound)

    def initial_state(self, batch_size: int) -> Grid2dState:
        rows = self.input.weight.new_zeros(self.num_layers, batch_size, self.hidden_size)
        return Grid2dState(rows, rows.new_zeros(self.num_layers, batch_size, self.memory_sizes[0]))

    def set_progress(self, share: float) -> None:
        self.grid.progress = share

    def forward(self, x: Tensor, state: Grid2dState | None = None) -> tuple[Tensor, Grid2dState]:
        bottom = self.input(x).transpose(0, 1)  # (T, B, output_size)
        state = self.state_before(state, bottom.shape[1])
        h, m = bottom.split([self.hidden_size, self.output_size - self.hidden_size], dim=-1)
        if not self.memory_at_ends:
            m = bottom.new_zeros(*h.shape[:2], self.memory_sizes[1])
        time, depth = self.grid.over(HiddenMemory(*state), HiddenMemory(h, m))
        y = torch.cat([depth.h, depth.m], dim=-1) if self.memory_at_ends else depth.h
        return y.transpose(0, 1), Grid2dState(*time)
