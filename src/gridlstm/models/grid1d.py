"""The 1-LSTM: a grid with only a depth dimension, the network of the paper's parity experiment, and its alternatives.

Shape legend: B batch rows, L layers, d hidden size.
"""

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import check_true_or_false
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import VectorModel, VectorProjection, check_sizes


class Grid1d(VectorModel):
    """A feed-forward network whose layers are transforms along depth: (h', m') = LSTM(h, m, W), each W (4d, d).

    The whole input is projected, without bias, into the h and m of the first layer; the output is the h and m of the
    last layer, y = [h; m] of length 2d (section 3 of arXiv 1507.01526, with N = 1).

    Cells without memory give other feed-forward networks, whose output is only h: ``NonLSTM`` the fully connected
    network h' = alpha(W h + b), ``Highway`` the highway network (Srivastava et al. 2015). These networks differ only in
    the computation of a layer.

    Args:
        input_size: length of the input vector.
        hidden_size: d.
        num_layers: L.
        depth: the cell along depth.
        tied: share one weight set over all layers.
        sweep: see ``gridlstm.grid.Grid``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        depth: Cell = LSTM(),
        tied: bool = True,
        sweep: SweepName = "auto",
    ) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        check_cell("depth", depth)
        check_true_or_false(tied=tied)
        self.input_size = input_size
        self.num_layers = num_layers
        sizes = hidden_size, depth.memory_size(hidden_size)
        self.sizes = sizes
        self.output_size = sum(sizes)
        self.input = VectorProjection(input_size, self.output_size)
        untied_extent = None if tied else num_layers
        self.grid = Grid([Dimension("depth", depth, hidden_size, untied_extent=untied_extent)], sweep=sweep)

    def set_progress(self, share: float) -> None:
        self.grid.progress = share

    def forward(self, x: Tensor) -> Tensor:
        (depth,) = self.grid([HiddenMemory(*self.input(x).split(self.sizes, dim=-1))], (self.num_layers,))
        return torch.cat(depth, dim=-1)
