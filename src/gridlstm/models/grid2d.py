"""The 2-LSTM: a grid of time and depth, the network of the paper's sections 4.1 to 4.3.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes
from gridlstm.regularizers import Regularizer


class Grid2dState(NamedTuple):
    """What travels along time: the hidden and memory vectors of every layer."""

    h: Tensor
    """(L, B, d)"""
    m: Tensor
    """(L, B, d)"""


class Grid2d(SequenceModel):
    """Grid of LSTM cells along time and along depth.

    Each step's input is projected into the hidden and the memory vector that enter at the bottom of the depth
    dimension; what leaves at the top, both hidden and memory, is the output: y = [h; m] of length 2d.

    ``tied=True`` is the paper's "tied 2-LSTM": one weight set for the time transform and one for the depth transform,
    both shared by all layers (16.8 M parameters at 6 x 1000 with 205 symbols, whatever the depth).

    Args:
        input_size: symbols, or features per step.
        hidden_size: d, of both dimensions.
        num_layers: L, the blocks along depth.
        time: the cell along time.
        depth: the cell along depth.
        tied: share weights along depth.
        priority: the dimension that sees the other's new hidden vector (section 3.2): "depth", "time" or None.
            The paper draws depth prioritised (figure 1) but does not say what its experiments used.
        sweep: see ``gridlstm.grid.Grid``.
        time_regularizers: noise along time, such as zoneout or variational dropout.
        depth_regularizers: noise along depth, such as dropout.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        time: Cell = LSTM(),
        depth: Cell = LSTM(),
        tied: bool = True,
        priority: str | None = None,
        sweep: SweepName = "auto",
        time_regularizers: Sequence[Regularizer] = (),
        depth_regularizers: Sequence[Regularizer] = (),
    ) -> None:
        super().__init__()
        check_sizes(hidden_size, num_layers)
        if priority not in (None, "time", "depth"):
            raise UserError(f"priority must be depth, time or null, got {priority!r}.")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.output_size = hidden_size + depth.memory_size(hidden_size)
        self.memory_sizes = time.memory_size(hidden_size), depth.memory_size(hidden_size)
        self.input = InputProjection(input_size, self.output_size)
        self.grid = Grid(
            [
                Dimension("time", time, hidden_size, regularizers=tuple(time_regularizers)),
                Dimension(
                    "depth",
                    depth,
                    hidden_size,
                    untied_extent=None if tied else num_layers,
                    regularizers=tuple(depth_regularizers),
                ),
            ],
            priority=() if priority is None else (priority,),
            sweep=sweep,
        )

    def initial_state(self, batch_size: int) -> Grid2dState:
        rows = self.input.weight.new_zeros(self.num_layers, batch_size, self.hidden_size)
        return Grid2dState(rows, rows.new_zeros(self.num_layers, batch_size, self.memory_sizes[0]))

    def forward(self, x: Tensor, state: Grid2dState | None = None) -> tuple[Tensor, Grid2dState]:
        if state is None:
            state = self.initial_state(x.shape[0])
        bottom = self.input(x).transpose(0, 1)  # (T, B, 2d)
        h, m = bottom.split([self.hidden_size, self.memory_sizes[1]], dim=-1)
        time, depth = self.grid([HiddenMemory(*state), HiddenMemory(h, m)], (x.shape[1], self.num_layers))
        return torch.cat(depth, dim=-1).transpose(0, 1), Grid2dState(*time)  # (B, T, 2d)
