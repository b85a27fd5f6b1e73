"""A small convolutional network, the usual choice for images.

Shape legend: B batch rows, d hidden size.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.errors import UserError, check_at_least_one
from gridlstm.models.base import ImageModel, check_images, start_for_relu


class CNN(ImageModel):
    """L convolutions of 3 x 3 pixels, each with a bias and a ReLU, and a max-pooling of 2 x 2 after every second one.

    The first two have d channels, and every further pair twice as many as the one before, as in VGG (Simonyan and
    Zisserman 2014, arXiv 1409.1556). There is no batch normalization, because a distributed run would not share its
    averages.

    Args:
        channels, height, width: of the images.
        hidden_size: d.
        num_layers: L.

    Raises:
        UserError: the image is too small to be halved num_layers // 2 times.
    """

    def __init__(self, channels: int, height: int, width: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        check_at_least_one(
            channels=channels, height=height, width=width, hidden_size=hidden_size, num_layers=num_layers
        )
        halvings = num_layers // 2
        if min(height, width) < 2**halvings:
            most = 2 * min(height, width).bit_length() - 1
            raise UserError(
                f"num_layers={num_layers} halves an image of {height} x {width} pixels {halvings} times: give at most "
                f"num_layers={most}."
            )
        sizes = [channels, *(hidden_size * 2 ** (layer // 2) for layer in range(num_layers))]
        self.image_size = channels, height, width
        layers = [nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sizes)]
        start_for_relu(layers)
        self.layers = nn.ModuleList(layers)
        self.output_size = sizes[-1]
        self.map_size = height // 2**halvings, width // 2**halvings

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, *self.image_size, next(self.parameters()))
        y = images
        for number, layer in enumerate(self.layers, start=1):
            y = layer(y).relu()
            if number % 2 == 0:
                y = F.max_pool2d(y, 2)
        return y.permute(0, 2, 3, 1)
