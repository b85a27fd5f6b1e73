"""The 4-LSTM over moving images: LSTM cells along rows, columns, time and depth.

Shape legend: B batch rows, T frames, (Y, X) rows and columns of patches, L layers, d hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import check_at_least_one
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import Patches, VideoModel, check_frames
from gridlstm.models.grid3d import CORNERS, later_dimensions, scans


class Grid4d(VideoModel):
    """``Grid3d`` with time as a fourth dimension: every layer scans space from a corner of its own, and time forwards.

    Each patch of each frame is projected into the h and the m that enter the first layer. Each layer is a separate grid
    of extents (Y, X, T, 1): zeros enter along the rows and columns at its corner, and along time at the first frame.
    The vectors that leave a layer along depth enter the next layer at the same place and time. The vectors that leave
    the last layer are the output, y = [h; m] (section 3 of arXiv 1507.01526, with N = 4). After two layers from
    opposite corners, the output at a frame depends on every patch of that frame and of all earlier frames, and on no
    later frame.

    Args:
        channels, height, width: of the frames.
        hidden_size: d.
        num_layers: L.
        patch: p, for patches of p x p pixels.
        corners: see ``gridlstm.models.grid3d.Grid3d``.
        space: the cell along the rows and the columns, with separate weights for each.
        time: the cell along time.
        depth: the cell along depth. ``NonLSTM`` has no memory, and y = h.
        priority: "depth" if depth sees the new hidden vectors of the other three (section 3.2), or None.
        sweep: see ``gridlstm.grid.Grid``.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        hidden_size: int,
        num_layers: int,
        patch: int = 4,
        corners: Sequence[str] = tuple(CORNERS),
        space: Cell = LSTM(),
        time: Cell = LSTM(),
        depth: Cell = LSTM(),
        priority: str | None = None,
        sweep: SweepName = "auto",
    ) -> None:
        super().__init__()
        check_at_least_one(hidden_size=hidden_size, num_layers=num_layers)
        for name, cell in (("space", space), ("time", time), ("depth", depth)):
            check_cell(name, cell)
        later = later_dimensions(priority)
        self.sizes = hidden_size, depth.memory_size(hidden_size)
        self.output_size = sum(self.sizes)
        self.input = Patches(channels, height, width, patch, self.output_size)
        self.map_size = self.input.map_size
        self.layers = nn.ModuleList()
        for from_bottom, from_right in scans(corners, num_layers, self.map_size)[0]:
            self.layers.append(
                Grid(
                    [
                        Dimension("y", space, hidden_size, reverse=from_bottom),
                        Dimension("x", space, hidden_size, reverse=from_right),
                        Dimension("time", time, hidden_size),
                        Dimension("depth", depth, hidden_size),
                    ],
                    later,
                    sweep,
                )
            )
        self.memories = [cell.memory_size(hidden_size) for cell in (space, space, time)]

    def forward(self, frames: Tensor) -> Tensor:
        """Return y (B, T, Y, X, output_size) of frames (B, T, channels, height, width).

        Raises:
            UserError: see ``check_frames`` and ``check_images`` in ``gridlstm.models.base``.
        """
        check_frames(frames)
        (Y, X), (B, T) = self.map_size, frames.shape[:2]
        projected = self.input(frames.flatten(0, 1)).unflatten(2, (B, T)).transpose(2, 3)  # (Y, X, T, B, d + memory)
        above = HiddenMemory(*projected.split(self.sizes, dim=-1))
        others = (X, T), (Y, T), (Y, X)  # extents of the sides along y, x and time
        zeros = [
            HiddenMemory(*(projected.new_zeros(*shape, 1, B, size) for size in (self.sizes[0], memory)))
            for shape, memory in zip(others, self.memories, strict=True)
        ]
        for layer in self.layers:
            *_, above = layer([*zeros, above], (Y, X, T, 1))
        return torch.cat(above, dim=-1).permute(3, 2, 0, 1, 4)
