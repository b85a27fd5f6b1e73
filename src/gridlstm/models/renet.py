"""ReNet (Visin et al. 2015, arXiv 1505.00393): recurrent networks up and down columns, then along rows.

Shape legend: B batch rows, (Y, X) rows and columns of patches, L layers, d hidden size.
"""

from typing import Self

from torch import Tensor, nn

from gridlstm.errors import check_at_least_one
from gridlstm.models.base import ImageModel, Patches
from gridlstm.models.torch_rnn import run_rnn


class ReNet(ImageModel):
    """L layers, each of two bidirectional LSTMs: one over every column, then one over every row of its output.

    v = [LSTM_down(x); LSTM_up(x)] along each column, y = [LSTM_right(v); LSTM_left(v)] along each row: every place has
    seen the whole image after one layer. The output has length 2 d. Unlike in the paper's network, patches are cut only
    below the first layer, and are projected.

    Args:
        channels, height, width: of the images.
        hidden_size: d, of each direction.
        num_layers: L; the paper's network for MNIST has 2 of 256 units.
        patch: p, for patches of p x p pixels.
    """

    def __init__(
        self, channels: int, height: int, width: int, hidden_size: int, num_layers: int, patch: int = 4
    ) -> None:
        super().__init__()
        check_at_least_one(hidden_size=hidden_size, num_layers=num_layers)
        self.output_size = 2 * hidden_size
        self.input = Patches(channels, height, width, patch, 2 * hidden_size)
        self.map_size = self.input.map_size
        self.columns, self.rows = (
            nn.ModuleList(nn.LSTM(2 * hidden_size, hidden_size, bidirectional=True) for _ in range(num_layers))
            for _ in range(2)
        )

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        # cuDNN saves tensors for the backward pass only in training mode. Without dropout, results do not change.
        self.columns.train()
        self.rows.train()
        return self

    def forward(self, images: Tensor) -> Tensor:
        y = self.input(images)  # (Y, X, B, 2 d)
        (Y, X), B = self.map_size, len(images)
        for columns, rows in zip(self.columns, self.rows, strict=True):
            y = run_rnn(columns, y.flatten(1, 2))[0].unflatten(1, (X, B)).transpose(0, 1)  # (X, Y, B, 2 d)
            y = run_rnn(rows, y.flatten(1, 2))[0].unflatten(1, (Y, B)).transpose(0, 1)
        return y.permute(2, 0, 1, 3)
