"""The convolutional LSTM (Shi et al. 2015, arXiv 1506.04214): an LSTM at every place, which sees its neighbours.

Shape legend: B batch rows, T frames, (Y, X) rows and columns of patches, L layers, d hidden size, k side of the kernel.
"""

import torch
from torch import Tensor, nn

from gridlstm.errors import UserError, check_at_least_one
from gridlstm.models.base import Patches, VideoModel, check_frames


class ConvLSTM(VideoModel):
    """L layers of LSTMs along time whose matrix products are convolutions over the map of patches.

    With x_t the map below and * a convolution of k x k places with bias (equation 3 of the paper, without peepholes):

        [u; f; o; c] = W * [x_t; h_{t-1}]
        m_t = sigmoid(f + b) . m_{t-1} + sigmoid(u) . tanh(c)
        h_t = sigmoid(o) . tanh(m_t)

    The output at frame t is the top h_t, which depends only on the frames up to t. The paper also cuts its moving
    digits into patches of 4 x 4 pixels. Here the patches are projected.

    Args:
        channels, height, width: of the frames.
        hidden_size: d.
        num_layers: L.
        patch: p, for patches of p x p pixels.
        kernel: k, odd.
        forget_bias: b, added to the learned bias.

    Raises:
        UserError: k is even, or see ``gridlstm.models.base.Patches``.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        hidden_size: int,
        num_layers: int,
        patch: int = 4,
        kernel: int = 3,
        forget_bias: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least_one(hidden_size=hidden_size, num_layers=num_layers, kernel=kernel)
        if kernel % 2 == 0:
            raise UserError(f"kernel must be odd, got {kernel}. Choose 1, 3 or 5.")
        self.output_size = d = hidden_size
        self.input = Patches(channels, height, width, patch, d)
        self.map_size = self.input.map_size
        self.layers = nn.ModuleList(nn.Conv2d(2 * d, 4 * d, kernel, padding=kernel // 2) for _ in range(num_layers))
        self.forget_bias = forget_bias

    def forward(self, frames: Tensor) -> Tensor:
        """Return y (B, T, Y, X, d) of frames (B, T, channels, height, width).

        Raises:
            UserError: see ``check_frames`` and ``check_images`` in ``gridlstm.models.base``.
        """
        check_frames(frames)
        projected = self.input(frames.flatten(0, 1)).unflatten(2, frames.shape[:2])  # (Y, X, B, T, d)
        below = projected.permute(3, 2, 4, 0, 1)
        for layer in self.layers:
            h = m = self.input.weight.new_zeros(below[0].shape)
            above = []
            for x in below:
                # Autocast changes only the type of the products.
                u, f, o, c = layer(torch.cat([x.to(h.dtype), h], dim=1)).to(m.dtype).chunk(4, dim=1)
                m = (f + self.forget_bias).sigmoid() * m + u.sigmoid() * c.tanh()
                h = o.sigmoid() * m.tanh()
                above.append(h)
            below = torch.stack(above)
        return below.permute(1, 0, 3, 4, 2)
