"""A causal grid over the pixels of an image: the output at a pixel sees all pixels before it in raster order.

Shape legend: B batch rows, (R, W) rows and columns of pixels, L layers, d hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import check_at_least_one
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import PixelModel, VectorProjection, check_rows
from gridlstm.models.grid3d import later_dimensions


class LayerState(NamedTuple):
    """Vectors that one layer passes from a row of pixels to the next."""

    left: HiddenMemory
    """(W, 1, B, d): leaves the scan from the left along the rows."""
    right: HiddenMemory
    """(W, 1, B, d): leaves the scan from the right along the rows."""
    above: HiddenMemory
    """(W, B, d): the output of the scan from the right at the last row."""


class Grid2dPixels(PixelModel):
    """Pairs of grids over rows, columns and depth, which together see all earlier pixels and no others.

    A scan from the top left, A, does not see what lies above and to the right of a pixel; a scan from the top right, B,
    does. B's output is used one row lower, where its whole field lies above the pixel (PixelRNN's Diagonal BiLSTM, van
    den Oord et al. 2016, arXiv 1601.06759, section 3.2)::

        A A . .      . . . .      A A . .         At the pixel x, A sees the columns to the left,
        A A . .  and . . B B  is  A A B B         B the rows above, from the column of x on.
        A A x .      . . B B      A A x .         Together they see all earlier pixels in raster order.

    With v_ij the projected pixel and y^l_ij = [h; m] the output of layer l:

        layer 1:       A reads v_{i,j-1}, B reads v_{i,j}
        layer l > 1:   A and B read y^{l-1}_ij
        output:        y^l_ij = (A^l_ij + B^l_{i-1,j}) / 2

    v_{i,-1} is learned: without it, the first pixels would be predicted from zeros, which no weight can tell apart from
    a bias. All other inputs from outside the image are zeros. A and B are grids of extents (R, W, 1) with their own
    weights, and their outputs along depth are read. PixelRNN adds A and B. The mean keeps the scale of memories from
    layer to layer.

    Args:
        channels, height, width: of the images.
        hidden_size: d.
        num_layers: L.
        space: the cell along the rows and the columns, with separate weights for each.
        depth: the cell along depth. ``NonLSTM`` has no memory, and y = h.
        priority: "depth" if depth sees the new hidden vectors of the other two (section 3.2), or None.
        sweep: see ``gridlstm.grid.Grid``.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        hidden_size: int,
        num_layers: int,
        space: Cell = LSTM(),
        depth: Cell = LSTM(),
        priority: str | None = None,
        sweep: SweepName = "auto",
    ) -> None:
        super().__init__()
        check_at_least_one(
            channels=channels, height=height, width=width, hidden_size=hidden_size, num_layers=num_layers
        )
        check_cell("space", space)
        check_cell("depth", depth)
        later = later_dimensions(priority)
        self.image_size = channels, height, width
        self.sizes = hidden_size, depth.memory_size(hidden_size)
        self.space_sizes = hidden_size, space.memory_size(hidden_size)
        self.output_size = sum(self.sizes)
        self.input = VectorProjection(channels, self.output_size)
        self.start = nn.Parameter(torch.empty(self.output_size))
        nn.init.normal_(self.start)  # of unit variance, like projected pixels

        def grid(from_right: bool) -> Grid:
            y, x = Dimension("y", space, hidden_size), Dimension("x", space, hidden_size, reverse=from_right)
            return Grid([y, x, Dimension("depth", depth, hidden_size)], later, sweep)

        self.left = nn.ModuleList(grid(False) for _ in range(num_layers))
        self.right = nn.ModuleList(grid(True) for _ in range(num_layers))

    def initial_state(self, batch_size: int) -> tuple[LayerState, ...]:
        W = self.image_size[2]
        side = self._zeros(self.space_sizes, W, 1, batch_size)
        return (LayerState(side, side, self._zeros(self.sizes, W, batch_size)),) * len(self.left)

    def forward(
        self, images: Tensor, state: tuple[LayerState, ...] | None = None
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Return the output (B, R, W, output_size) for rows of images (B, channels, R, W), and the state after them.

        Raises:
            UserError: see ``gridlstm.models.base.check_rows``.
        """
        channels, _, width = self.image_size
        check_rows(images, channels, width, self.input.weight)
        pixels = images.permute(2, 3, 0, 1)  # (R, W, B, channels)
        extents, B = (*pixels.shape[:2], 1), len(images)
        projected = self.input(pixels.flatten(0, 2)).unflatten(0, pixels.shape[:3])
        shifted = torch.cat([self.start.expand_as(projected[:, :1]), projected[:, :-1]], dim=1)
        before, here = (HiddenMemory(*v.split(self.sizes, dim=-1)) for v in (shifted, projected))
        outside = self._zeros(self.space_sizes, extents[0], 1, B)
        after = []
        for left, right, (y_left, y_right, above) in zip(
            self.left, self.right, state or self.initial_state(B), strict=True
        ):
            y_left, _, a = left([y_left, outside, before], extents)
            y_right, _, b = right([y_right, outside, here], extents)
            lower = (torch.cat([first[None], v[:-1]]) for first, v in zip(above, b, strict=True))
            before = here = HiddenMemory(*((v + w) / 2 for v, w in zip(a, lower, strict=True)))
            after.append(LayerState(y_left, y_right, HiddenMemory(*(v[-1] for v in b))))
        return torch.cat(here, dim=-1).permute(2, 0, 1, 3), tuple(after)

    def _zeros(self, sizes: tuple[int, int], *shape: int) -> HiddenMemory:
        return HiddenMemory(*(self.input.weight.new_zeros(*shape, size) for size in sizes))
