"""The U-Net (Ronneberger et al. 2015, arXiv 1505.04597): convolutions that return to the image's own resolution.

Shape legend: B batch rows, (H, W) rows and columns of pixels, L levels, d hidden size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.errors import UserError, check_at_least_one
from gridlstm.models.base import ImageModel, check_images, start_for_relu


class UNet(ImageModel):
    """L levels, each of half the resolution and twice the channels of the one above; the map has every pixel.

    With C two convolutions of 3 x 3 pixels, each with bias and ReLU, and d 2^{l-1} channels at level l:

        x^1 = C(image)      x^l = C(pool(x^{l-1}))      down: the largest of 2 x 2 places
        y^L = x^L           y^l = C([up(y^{l+1}); x^l]) up: each place is repeated

    The output is y^1, of length d. Unlike in the paper, padding keeps the size, and repetition replaces the
    up-convolution.

    Args:
        channels, height, width: of the images.
        hidden_size: d.
        num_layers: L.

    Raises:
        UserError: the image is too small to be halved num_layers - 1 times.
    """

    def __init__(self, channels: int, height: int, width: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        check_at_least_one(
            channels=channels, height=height, width=width, hidden_size=hidden_size, num_layers=num_layers
        )
        if min(height, width) < 2 ** (num_layers - 1):
            raise UserError(
                f"num_layers={num_layers} halves an image of {height} x {width} pixels {num_layers - 1} times: give at "
                f"most num_layers={min(height, width).bit_length()}."
            )
        self.image_size = channels, height, width
        self.map_size = height, width
        self.output_size = hidden_size
        sizes = [hidden_size * 2**level for level in range(num_layers)]
        self.down = nn.ModuleList(_Pair(below, size) for below, size in zip([channels, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(_Pair(3 * size, size) for size in sizes[:-1])

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, *self.image_size, next(self.parameters()))
        levels = [self.down[0](images)]
        for pair in self.down[1:]:
            levels.append(pair(F.max_pool2d(levels[-1], 2)))
        y = levels.pop()
        for pair, x in zip(reversed(self.up), reversed(levels), strict=True):
            y = pair(torch.cat([F.interpolate(y, x.shape[2:]), x], dim=1))
        return y.permute(0, 2, 3, 1)


class _Pair(nn.Sequential):
    """Two convolutions of 3 x 3 pixels with ReLUs."""

    def __init__(self, before: int, after: int) -> None:
        layers = [nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)]
        start_for_relu(layers)
        super().__init__(layers[0], nn.ReLU(), layers[1], nn.ReLU())
