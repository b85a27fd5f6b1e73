"""Read-out of pixels from a map of patches.

Shape legend: B batch rows, (Y, X) rows and columns of a model's map, e its output size, K numbers of each pixel.
"""

from torch import Tensor, nn

from gridlstm.errors import UserError


class PatchHead(nn.Module):
    """Numbers of every pixel: a place of the map gives, by one linear layer, those of its (H / Y) x (W / X) pixels.

    Args:
        name: of the model, in the message.
        features: e.
        map_size: (Y, X).
        height, width: H and W, pixels of the image.
        numbers: K.

    Raises:
        UserError: the map does not divide the image into equal patches.
    """

    def __init__(
        self, name: str, features: int, map_size: tuple[int, int], height: int, width: int, numbers: int
    ) -> None:
        super().__init__()
        Y, X = map_size
        if height % Y or width % X:
            raise UserError(
                f"{name} gives a map of {Y} x {X} places, which does not divide an image of {height} x {width} pixels "
                f"into equal patches. Choose other layers or patches, or an image of a multiple of {Y} x {X} pixels."
            )
        self.shape = numbers, height // Y, width // X
        self.linear = nn.Linear(features, numbers * self.shape[1] * self.shape[2])

    def forward(self, y: Tensor) -> Tensor:
        """Return numbers (B, K, H, W) of a map (B, Y, X, e)."""
        patches = self.linear(y).unflatten(-1, self.shape)  # (B, Y, X, K, H / Y, W / X)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
