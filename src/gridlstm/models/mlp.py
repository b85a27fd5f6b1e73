"""A fully connected network on all pixels, which does not use their positions.

Shape legend: B batch rows, d hidden size.
"""

from itertools import pairwise

from torch import Tensor, nn

from gridlstm.errors import check_at_least_one
from gridlstm.models.base import ImageModel, check_images, start_for_relu


class MLP(ImageModel):
    """h = relu(W h + b), L times; its map has a single place.

    Args:
        channels, height, width: of the images.
        hidden_size: d.
        num_layers: L.
    """

    map_size = (1, 1)
    last_place = (0, 0)

    def __init__(self, channels: int, height: int, width: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        check_at_least_one(
            channels=channels, height=height, width=width, hidden_size=hidden_size, num_layers=num_layers
        )
        self.image_size = channels, height, width
        self.output_size = hidden_size
        sizes = [channels * height * width, *(hidden_size for _ in range(num_layers))]
        layers = [nn.Linear(before, after) for before, after in pairwise(sizes)]
        start_for_relu(layers)
        self.layers = nn.ModuleList(layers)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, *self.image_size, next(self.parameters()))
        y = images.flatten(1)
        for layer in self.layers:
            y = layer(y).relu()
        return y[:, None, None]
