"""Scenes of several digits, with the class of every pixel.

Shape legend: B samples, N the largest number of digits in a scene, s pixels of a digit's side.
"""

import torch
from torch import Tensor

from gridlstm.data.base import PixelBatch
from gridlstm.data.counter import random_words
from gridlstm.data.image_files import ImageSource
from gridlstm.data.placed_digits import MOST_DIGITS, PlacedDigits, paste
from gridlstm.data.spec import ImageSpec


class DigitScenes(PlacedDigits):
    """Digits at random places on a canvas; the target is the class of every pixel.

    The example is a scene of a 3 and a 7, with ink shown as #, and its classes. Class 0 is the background, and class
    c + 1 is digit c::

        image   . . . . . . . .      target  0 0 0 0 0 0 0 0
                . # # . . . . .              0 4 4 0 0 0 0 0
                . . # . # # # .              0 0 4 0 8 8 8 0
                . . # . . . # .              0 0 4 0 0 0 8 0
                . # # . . # . .              0 4 4 0 0 8 0 0

    A scene has 1 to N digits, and all these numbers are equally frequent. Digits may overlap, and each lies entirely
    inside the canvas. A pixel is as bright as the brightest digit there. If that brightness is at least ``INK``, the
    pixel has the class of that digit; of several equally bright digits, the last one counts. Otherwise the pixel is
    background.

    Images have values from -1 (black) to 1. A sample is a function of (seed, split, index).

    Args:
        source, size, digit_size, batch_size, seed, num_val, num_test: see ``PlacedDigits``.
        max_digits: N, at most ``MOST_DIGITS``.

    Raises:
        ValueError: see ``PlacedDigits``, or ``max_digits`` is out of range.
    """

    INK = 0.25

    def __init__(
        self,
        source: ImageSource,
        size: int,
        digit_size: int,
        max_digits: int,
        batch_size: int,
        seed: int,
        num_val: int,
        num_test: int,
    ) -> None:
        super().__init__(source, size, digit_size, batch_size, seed, num_val, num_test)
        if not 1 <= max_digits <= MOST_DIGITS:
            raise ValueError(f"max_digits must be from 1 to {MOST_DIGITS}, got {max_digits}.")
        self.max_digits = max_digits

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(channels=1, height=self.size, width=self.size, classes=self.source.spec.classes + 1)

    def generate(self, key: tuple[int, ...], index: Tensor) -> PixelBatch:
        number, *words = random_words(key, index, 1 + 3 * self.max_digits).split([1, *[self.max_digits] * 3], dim=1)
        digits = self.digits(key[1], words[0])  # (B, N, s, s)
        top, left = (each.flatten() % (self.size - self.digit_size + 1) for each in words[1:])
        placed = paste(digits.images.flatten(0, 1), top, left, self.size).unflatten(0, words[0].shape)
        shown = torch.arange(self.max_digits, device=index.device) <= number % self.max_digits  # (B, N)
        placed = placed * shown[:, :, None, None]
        brightness = placed.amax(1)  # (B, size, size)
        targets = torch.zeros_like(brightness, dtype=torch.int64)
        for layer, classes in zip(placed.unbind(1), digits.targets.unbind(1), strict=True):
            here = (layer == brightness) & (brightness >= self.INK)
            targets = torch.where(here, classes[:, None, None] + 1, targets)
        return PixelBatch(2 * brightness[:, None] - 1, targets)
