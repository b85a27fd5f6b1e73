"""The 3-LSTM over an image: the network of the paper's MNIST experiment.

Shape legend: B batch rows, (Y, X) rows and columns of patches, L layers, d hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import UserError, check_at_least_one
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import ImageModel, Patches

CORNERS = {
    "top_left": (False, False),
    "bottom_right": (True, True),
    "top_right": (False, True),
    "bottom_left": (True, False),
}
"""Corners in which a scan begins, each with two flags: True if the scan runs from the last row to the first, and True
if it runs from the last column to the first. In this order every place has seen the whole image after two layers."""


def scans(
    corners: Sequence[str], num_layers: int, map_size: tuple[int, int]
) -> tuple[list[tuple[bool, bool]], tuple[int, int]]:
    """Return the directions of each layer's scan, as in ``CORNERS``, and the place (row, column) where the last ends.

    A scan ends in the opposite corner. The list of corners repeats if there are more layers. The default list may be
    longer than the number of layers; other lists may not.

    Raises:
        UserError: the list is empty or too long, or names a corner that an image does not have.
    """
    if not isinstance(corners, list | tuple) or not corners or any(corner not in list(CORNERS) for corner in corners):
        raise UserError(f"corners must be a list of {', '.join(CORNERS)}, got {corners!r}.")
    if len(corners) > num_layers and list(corners) != list(CORNERS):
        raise UserError(
            f"corners must be a list of at most num_layers={num_layers} corners, one for each layer, got {corners!r}. "
            f"Remove the last ones."
        )
    directions = [CORNERS[corners[layer % len(corners)]] for layer in range(num_layers)]
    from_bottom, from_right = directions[-1]
    return directions, (0 if from_bottom else map_size[0] - 1, 0 if from_right else map_size[1] - 1)


def later_dimensions(priority: str | None) -> tuple[str, ...]:
    """Return the ``priority`` of a ``Grid`` whose last dimension is depth, for a model's option ``priority``.

    Raises:
        UserError: the option is neither "depth" nor None.
    """
    if priority not in (None, "depth"):
        raise UserError(f"priority must be depth or null, got {priority!r}.")
    return () if priority is None else (priority,)


class Grid3d(ImageModel):
    """Layers of grids over the patches of an image: LSTM cells along the rows, the columns and the depth.

    Each patch is projected into the h and the m that enter the first layer. Each layer is a separate grid of extents
    (Y, X, 1) with its own weights, because a scan has one direction: it begins at its own corner, where zeros enter,
    and ends at the opposite corner. The vectors that leave a layer along depth enter the next layer at the same place.
    The vectors that leave the last layer are the output, y = [h; m] of length 2 d at every place (section 3 of
    arXiv 1507.01526, with N = 3).

    With 4 layers of 100 units, the network has 1.44 M weights besides projection and read-out.

    Args:
        channels, height, width: of the images.
        hidden_size: d.
        num_layers: L.
        patch: p, for patches of p x p pixels.
        corners: where each layer's scan begins, from the first layer on: top_left, bottom_right, top_right or
            bottom_left. The list repeats if there are more layers. Only the default may have more corners than layers.
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
        patch: int = 4,
        corners: Sequence[str] = tuple(CORNERS),
        space: Cell = LSTM(),
        depth: Cell = LSTM(),
        priority: str | None = None,
        sweep: SweepName = "auto",
    ) -> None:
        super().__init__()
        check_at_least_one(hidden_size=hidden_size, num_layers=num_layers)
        check_cell("space", space)
        check_cell("depth", depth)
        later = later_dimensions(priority)
        self.sizes = hidden_size, depth.memory_size(hidden_size)
        self.space_memory = space.memory_size(hidden_size)
        self.output_size = sum(self.sizes)
        self.input = Patches(channels, height, width, patch, self.output_size)
        self.map_size = self.input.map_size
        directions, self.last_place = scans(corners, num_layers, self.map_size)
        self.layers = nn.ModuleList()
        for reverses in directions:
            y, x = (
                Dimension(name, space, hidden_size, reverse=reverse)
                for name, reverse in zip("yx", reverses, strict=True)
            )
            self.layers.append(Grid([y, x, Dimension("depth", depth, hidden_size)], later, sweep))

    def forward(self, images: Tensor) -> Tensor:
        above = HiddenMemory(*self.input(images).split(self.sizes, dim=-1))
        (Y, X), B = self.map_size, len(images)
        zeros = self.input.weight.new_zeros(max(Y, X), 1, B, self.sizes[0] + self.space_memory)
        entering = zeros.split([self.sizes[0], self.space_memory], dim=-1)
        for layer in self.layers:
            y, x = (HiddenMemory(*(each[:others] for each in entering)) for others in (X, Y))
            *_, above = layer([y, x, above], (Y, X, 1))
        return torch.cat(above, dim=-1).permute(2, 0, 1, 3)
