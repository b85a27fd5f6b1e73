"""The 2-LSTM: a grid of time and depth, the network of the paper's sections 4.1 to 4.3.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import InputProjection, SequenceModel, check_dropout, check_sizes, start_weights_within
from gridlstm.regularizers import Regularizer
from gridlstm.scan import Masks


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

    Other choices of section 3.5: ``tied=False``, weights of its own for every layer; ``tied=["depth"]``, only the depth
    transform shared by all layers; ``shared=True``, one set for time and depth too.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d, of both dimensions.
        num_layers: L, the blocks along depth.
        time: the cell along time.
        depth: the cell along depth.
        tied: share weights along depth: true for both transforms, false for none, or a list that names one.
        shared: both transforms use one weight set.
        priority: the dimension that sees the other's new hidden vector (section 3.2): "depth", "time" or None.
            The paper draws depth prioritised (figure 1) but does not say what its experiments used.
        sweep: see ``gridlstm.grid.Grid``.
        time_regularizers: noise along time, such as zoneout or variational dropout.
        depth_regularizers: noise along depth, such as dropout.
        dropout: probability with which elements of a layer's h along depth are dropped for the next layer and for the
            output. ``Dropout`` among the regularizers acts on the projected input as well, and not on the output.
        memory_at_ends: project the input into the memory too, and make the top memory part of the output, as the paper
            does. False, as in much public code: depth's memory starts at 0, and y is the top h alone.
        init_bound: start all weights in U(-init_bound, init_bound), those of a task's read-out too; None for each
            cell's own start.
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
        if priority not in (None, "time", "depth"):
            raise UserError(f"priority must be depth, time or null, got {priority!r}.")
        check_dropout(dropout)
        if shared and time != depth:
            raise UserError(f"shared=true: expected the same cell along time and depth, got {time} and {depth}.")
        names = ("time", "depth")
        if isinstance(tied, str) or not isinstance(tied, bool | Collection):
            raise UserError(f"tied must be true, false or a list of time and depth, got {tied!r}.")
        tied_names = set(names if tied else ()) if isinstance(tied, bool) else set(tied)
        if unknown := tied_names - set(names):
            raise UserError(f"tied must be true, false or a list of time and depth, got {unknown.pop()!r} in it.")
        if shared and len(tied_names) == 1:
            raise UserError("shared=true is one weight set, tied for time and depth alike: choose tied=true or false.")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.memory_sizes = time.memory_size(hidden_size), depth.memory_size(hidden_size)
        self.memory_at_ends = memory_at_ends
        self.output_size = hidden_size + (self.memory_sizes[1] if memory_at_ends else 0)
        self.input = InputProjection(input_size, self.output_size)
        along_time = Dimension(
            "time", time, hidden_size, tied="time" in tied_names, regularizers=tuple(time_regularizers)
        )
        along_depth = Dimension(
            "depth",
            depth,
            hidden_size,
            untied_extent=None if len(tied_names) == 2 else num_layers,
            tied="depth" in tied_names,
            shares="time" if shared else None,
            regularizers=tuple(depth_regularizers),
        )
        self.grid = Grid(
            [along_time, along_depth],
            priority=() if priority is None else (priority,),
            sweep=sweep,
        )
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
        sides, extents = [HiddenMemory(*state), HiddenMemory(h, m)], (x.shape[1], self.num_layers)
        time, depth = self.grid(sides, extents, self._between_layers(h))
        top = F.dropout(depth.h, self.dropout, self.training)
        y = torch.cat([top, depth.m], dim=-1) if self.memory_at_ends else top
        return y.transpose(0, 1), Grid2dState(*time)

    def _between_layers(self, bottom: Tensor) -> list[Masks] | None:
        """Dropout of what each layer but the first reads from below."""
        if self.dropout == 0 or not self.training:
            return None
        T, *rest = bottom.shape
        drop = bottom.new_ones(T, self.num_layers, *rest)
        drop[:, 1:] = F.dropout(drop[:, 1:], self.dropout)
        return [Masks(), Masks(drop=drop)]
