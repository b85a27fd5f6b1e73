"""Read-out of pixels from a map of patches.

Shape legend: B batch rows, (Y, X) rows and columns of a model's map, e its output size, K numbers of each pixel.
"""

from torch import Tensor, nn

from gridlstm.data.spec import ImageSpec, VideoSpec
from gridlstm.errors import UserError
from gridlstm.models.base import ImageModel, VideoModel


class PatchHead(nn.Module):
    """Linear layer that computes, from each place of a map, the numbers of its (H / Y) x (W / X) pixels.

    Args:
        model: the network, whose map has (Y, X) places of e numbers.
        spec: sizes of the images, H x W pixels.
        numbers: K.

    Raises:
        UserError: the map does not divide the image into equal patches.
    """

    def __init__(self, model: ImageModel | VideoModel, spec: ImageSpec | VideoSpec, numbers: int) -> None:
        super().__init__()
        (Y, X), height, width = model.map_size, spec.height, spec.width
        if height % Y or width % X:
            raise UserError(
                f"{type(model).__name__} gives a map of {Y} x {X} places, which does not divide an image of {height} x "
                f"{width} pixels into equal patches. Choose other layers or patches, or an image of a multiple of "
                f"{Y} x {X} pixels."
            )
        self.shape = numbers, height // Y, width // X
        self.linear = nn.Linear(model.output_size, numbers * self.shape[1] * self.shape[2])

    def forward(self, y: Tensor) -> Tensor:
        """Return numbers (B, K, H, W) of a map (B, Y, X, e)."""
        patches = self.linear(y).unflatten(-1, self.shape)  # (B, Y, X, K, H / Y, W / X)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
