"""Small random changes of training images, each a function of (key, sample) alone.

Shape legend: B batch rows, C channels, H height, W width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.data.counter import random_words


@dataclass(frozen=True)
class Augmentation:
    """Random shift and rotation of images. Pixels that come from outside the image are zero.

    Args:
        max_shift: s; each image is shifted by a whole number of pixels, uniform from -s to s, down and to the right.
        max_rotation: r in degrees; each image is turned about its centre by an angle uniform in [-r, r), with bilinear
            interpolation, before it is shifted.

    Raises:
        ValueError: a number is out of range.
    """

    max_shift: int = 0
    max_rotation: float = 0.0

    def __post_init__(self) -> None:
        if self.max_shift < 0:
            raise ValueError(f"max_shift must be a number of pixels, 0 or more, got {self.max_shift}.")
        if not 0 <= self.max_rotation <= 180:
            raise ValueError(f"max_rotation must be from 0 to 180 degrees, got {self.max_rotation}.")

    def draw(self, key: tuple[int, ...], sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each sample's random shift, in pixels down and to the right (int64), and angle in radians (float64).

        Args:
            sample: (B,) int64, a different number for every sample of every epoch.
        """
        words = random_words(key, sample, 3)
        down, right = (words[:, :2] % (2 * self.max_shift + 1) - self.max_shift).unbind(1)
        angle = (words[:, 2].double() / 2**62 - 1) * math.radians(self.max_rotation)
        return down, right, angle

    def __call__(self, images: Tensor, key: tuple[int, ...], sample: Tensor) -> Tensor:
        """Return the changed images (B, C, H, W), in float32 if ``max_rotation`` is not 0, otherwise in their own type.

        Args:
            images: (B, C, H, W), uint8 or floats.
            key, sample: see ``draw``.
        """
        down, right, angle = self.draw(key, sample)
        if self.max_rotation:
            return _moved(images.float(), down, right, angle)
        return _shifted(images, down, right, self.max_shift) if self.max_shift else images


def _shifted(images: Tensor, down: Tensor, right: Tensor, most: int) -> Tensor:
    H, W = images.shape[-2:]
    padded = F.pad(images, (most, most, most, most))
    rows = torch.arange(H) + (most - down)[:, None]  # (B, H)
    columns = torch.arange(W) + (most - right)[:, None]  # (B, W)
    at = torch.arange(len(images))[:, None, None]
    return padded.movedim(1, 3)[at, rows[:, :, None], columns[:, None]].movedim(3, 1)


def _moved(images: Tensor, down: Tensor, right: Tensor, angle: Tensor) -> Tensor:
    H, W = images.shape[-2:]
    # Source position of each pixel, relative to the centre. It is computed elementwise, because the rounding of a
    # matrix product may depend on the batch size.
    y = torch.arange(H) - (H - 1) / 2 - down[:, None]  # (B, H)
    x = torch.arange(W) - (W - 1) / 2 - right[:, None]  # (B, W)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    from_y = cos * y[:, :, None] - sin * x[:, None]
    from_x = sin * y[:, :, None] + cos * x[:, None]
    grid = torch.stack([from_x * 2 / W, from_y * 2 / H], dim=-1).float()  # the edges of the image are at -1 and 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
