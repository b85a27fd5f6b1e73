"""A stack of multidimensional LSTMs over an image, with which the paper compares the 3-LSTM (section 2.3).

Shape legend: B batch rows, (Y, X) rows and columns of patches, L layers, d hidden size.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from gridlstm.cell import LSTM
from gridlstm.errors import check_at_least_one
from gridlstm.mdlstm import MDLSTM
from gridlstm.models.base import ImageModel, Patches
from gridlstm.models.grid3d import CORNERS, scans


class MDLSTMImage(ImageModel):
    """``Grid3d`` with blocks of ``MDLSTM`` and without memory along depth: a layer reads the h of the one before.

    H = [x; h_y; h_x] and m' = f_y . m_y + f_x . m_x + u . c at every place. Each layer has 15 d^2 weights and scans
    from its own corner; the paths from corner to corner add up in m'. The output is the top h.

    Args:
        channels, height, width, hidden_size, num_layers, patch, corners: see ``Grid3d``.
        cell, sweep: see ``gridlstm.mdlstm.MDLSTM``.
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
        cell: LSTM = LSTM(),
        sweep: Literal["auto", "reference"] = "auto",
    ) -> None:
        super().__init__()
        check_at_least_one(hidden_size=hidden_size, num_layers=num_layers)
        self.output_size = hidden_size
        self.input = Patches(channels, height, width, patch, hidden_size)
        self.map_size = self.input.map_size
        directions, self.last_place = scans(corners, num_layers, self.map_size)
        self.layers = nn.ModuleList(
            MDLSTM(hidden_size, hidden_size, 2, cell, reverses, sweep) for reverses in directions
        )

    def forward(self, images: Tensor) -> Tensor:
        h = self.input(images)
        for layer in self.layers:
            h, _ = layer(h)
        return h.permute(2, 0, 1, 3)
