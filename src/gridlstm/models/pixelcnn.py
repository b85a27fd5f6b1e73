"""The gated PixelCNN over an image: convolutions that see the pixels before each one, without a blind spot.

Shape legend: B batch rows, (R, W) rows and columns of pixels, L layers, d hidden size, k side of the kernels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.errors import UserError, check_at_least_one
from gridlstm.models.base import PixelModel, check_rows


class PixelCNNState(NamedTuple):
    """Rows above the next row of pixels."""

    above: Tensor
    """(B, channels, 1, W): the last row of pixels."""
    rows: tuple[Tensor, ...]
    """(B, d, (k - 1) / 2, W) for each layer: the last rows that its vertical convolution has read."""


class PixelCNN(PixelModel):
    """L layers of two stacks: v sees the rows above, h sees these rows and the pixels to the left.

    It follows van den Oord et al. 2016, arXiv 1606.05328, section 2. With * a convolution with bias, and x the pixels:

        v^0_ij = A x_{i-1,j}              h^0_ij = B x_{i,j-1}
        g^l = V^l * v^{l-1}               v^l = gate(g^l)
        h^l = h^{l-1} + W^l gate(H^l * h^{l-1} + U^l g^l)
        gate([a; b]) = tanh(a) . sigmoid(b)

    V spans (k + 1) / 2 rows of k columns, H (k + 1) / 2 columns; both end at their own place. So the output h^L, of
    length d, sees L (k - 1) / 2 + 1 rows above it. Places outside the image are zero. The paper's network has two more
    layers of 1 x 1 pixels below its logits.

    Args:
        channels, height, width: of the images.
        hidden_size: d.
        num_layers: L.
        kernel: k, odd.

    Raises:
        UserError: k is even, or 1.
    """

    def __init__(
        self, channels: int, height: int, width: int, hidden_size: int, num_layers: int, kernel: int = 5
    ) -> None:
        super().__init__()
        check_at_least_one(
            channels=channels, height=height, width=width, hidden_size=hidden_size, num_layers=num_layers, kernel=kernel
        )
        if kernel == 1 or kernel % 2 == 0:
            raise UserError(f"kernel must be odd and at least 3, got {kernel}. Choose 3, 5 or 7.")
        self.image_size = channels, height, width
        self.output_size = hidden_size
        self.reach = kernel // 2
        self.above, self.left = (nn.Conv2d(channels, hidden_size, 1) for _ in range(2))
        self.layers = nn.ModuleList(_Layer(hidden_size, self.reach) for _ in range(num_layers))

    def initial_state(self, batch_size: int) -> PixelCNNState:
        channels, _, width = self.image_size
        zeros = self.left.weight.new_zeros
        rows = zeros(batch_size, self.output_size, self.reach, width)
        return PixelCNNState(zeros(batch_size, channels, 1, width), (rows,) * len(self.layers))

    def forward(self, images: Tensor, state: PixelCNNState | None = None) -> tuple[Tensor, PixelCNNState]:
        """Return h^L (B, R, W, d) for rows of images (B, channels, R, W), and the state after them.

        Raises:
            UserError: see ``gridlstm.models.base.check_rows``.
        """
        channels, _, width = self.image_size
        check_rows(images, channels, width, self.left.weight)
        before, rows = self.initial_state(len(images)) if state is None else state
        below = torch.cat([before, images], dim=2)
        v, h = self.above(below[:, :, :-1]), self.left(F.pad(images, (1, -1)))
        after = []
        for layer, earlier in zip(self.layers, rows, strict=True):
            seen = torch.cat([earlier, v], dim=2)
            after.append(seen[:, :, -self.reach :])
            v, h = layer(seen, h)
        return h.permute(0, 2, 3, 1), PixelCNNState(below[:, :, -1:], tuple(after))


class _Layer(nn.Module):
    """(v^{l-1}, h^{l-1}) -> (v^l, h^l), for v^{l-1} with the ``reach`` rows before it."""

    def __init__(self, d: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.vertical = nn.Conv2d(d, 2 * d, (reach + 1, 2 * reach + 1), padding=(0, reach))
        self.horizontal = nn.Conv2d(d, 2 * d, (1, reach + 1))
        self.across = nn.Conv2d(2 * d, 2 * d, 1)
        self.out = nn.Conv2d(d, d, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        g = self.vertical(v)
        along = self.horizontal(F.pad(h, (self.reach, 0))) + self.across(g)
        return _gate(g), h + self.out(_gate(along))


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()
