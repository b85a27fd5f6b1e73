"""A stacked LSTM over the pixels of an image in raster order: the image as one long sequence.

Shape legend: B batch rows, (R, W) rows and columns of pixels, L layers, d hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell
from gridlstm.errors import check_at_least_one
from gridlstm.models.base import PixelModel, check_rows
from gridlstm.models.stacked_lstm import StackedLSTM, StackedLSTMState


class PixelLSTMState(NamedTuple):
    """State after a row of pixels."""

    pixel: Tensor
    """(B, channels): the last pixel."""
    layers: StackedLSTMState


class PixelLSTM(PixelModel):
    """y_k = LSTM(x_{k-1}), where pixel k is at row k // W and column k % W, and x_{-1} = 0.

    Pixels are read one by one, as in the classification of MNIST by Le et al. 2015, arXiv 1504.00941. The pixel above
    lies W steps back. The output is the top h', of length d.

    Args:
        channels, height, width: of the images.
        hidden_size: d.
        num_layers: L.
        time: the cell along the sequence.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        hidden_size: int,
        num_layers: int,
        time: Cell = LSTM(output="standard", bias=True),
    ) -> None:
        super().__init__()
        check_at_least_one(channels=channels, height=height, width=width)
        self.channels, self.width = channels, width
        self.output_size = hidden_size
        self.lstm = StackedLSTM(channels, hidden_size, num_layers, time)

    def initial_state(self, batch_size: int) -> PixelLSTMState:
        pixel = self.lstm.input.weight.new_zeros(batch_size, self.channels)
        return PixelLSTMState(pixel, self.lstm.initial_state(batch_size))

    def forward(self, images: Tensor, state: PixelLSTMState | None = None) -> tuple[Tensor, PixelLSTMState]:
        """Return y (B, R, W, d) for rows of images (B, channels, R, W), and the state after them.

        Raises:
            UserError: see ``gridlstm.models.base.check_rows``.
        """
        check_rows(images, self.channels, self.width, self.lstm.input.weight)
        pixel, layers = self.initial_state(len(images)) if state is None else state
        pixels = images.flatten(2).transpose(1, 2)  # (B, R W, channels)
        y, layers = self.lstm(torch.cat([pixel[:, None], pixels[:, :-1]], dim=1), layers)
        return y.unflatten(1, images.shape[2:]), PixelLSTMState(pixels[:, -1], layers)
