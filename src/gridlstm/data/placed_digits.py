"""Base of data whose images show digits at random places.

Shape legend: B samples, N digits, s pixels of a digit's side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.data.generated import TEST, TRAIN, VAL, GeneratedData
from gridlstm.data.image_based import ImageBased
from gridlstm.data.image_files import Images, ImageSource
from gridlstm.errors import UserError

MOST_DIGITS = 100
"""Largest number of digits in a sample; a batch needs memory for each of them."""


class PlacedDigits(ImageBased, GeneratedData):
    """Generated samples made of the digits of a published set.

    Each split has its own digits. Training uses the first five sixths of the set's training images (50,000 of MNIST, as
    the paper divides it), and validation uses the last sixth. The test uses the test images. Digits are shrunk to s x s
    pixels by averaging blocks of pixels. Their brightness is from 0 to 1.

    Subclasses implement ``spec`` and ``generate``.

    Args:
        source: set of square images with one channel.
        size: pixels of the sides of the canvas.
        digit_size: s, a divisor of the side of the set's images.
        batch_size, seed, num_val, num_test: see ``GeneratedData``.

    Raises:
        ValueError: a size is out of range, or the set's images are neither grey nor square.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        digit_size: int,
        batch_size: int,
        seed: int,
        num_val: int,
        num_test: int,
    ) -> None:
        super().__init__(batch_size, seed, num_val, num_test)
        side = source.spec.height
        if (source.spec.channels, source.spec.width) != (1, side):
            raise ValueError(f"source must have square images of one channel, got {source.spec}.")
        if digit_size < 1 or side % digit_size:
            divisors = [str(s) for s in range(1, side + 1) if side % s == 0]
            raise ValueError(f"digit_size must divide {side}, got {digit_size}: choose one of {', '.join(divisors)}.")
        if size < digit_size:
            raise ValueError(f"size must be at least digit_size={digit_size}, got {size}.")
        self.source = source
        self.size = size
        self.digit_size = digit_size

    def divide(self, train: Images, test: Images) -> None:
        """Divide the digits into splits, and shrink them.

        Raises:
            UserError: a split would have no digits.
        """
        if len(train.images) < 6 or not len(test.images):
            raise UserError(
                f"{self.called} has {len(train.images):,} training images and {len(test.images):,} test images, "
                f"expected at least 6 and 1: each split has digits of its own. Use other files: data_dir=…."
            )
        first = len(train.images) - len(train.images) // 6
        parts = {TRAIN: (train, slice(first)), VAL: (train, slice(first, None)), TEST: (test, slice(None))}
        shrink = self.source.spec.height // self.digit_size
        self._parts = {
            split: Images(F.avg_pool2d(part.images[rows].float() / 255, shrink)[:, 0], part.targets[rows])
            for split, (part, rows) in parts.items()
        }

    def digits(self, split: int, words: Tensor) -> Images:
        """Return digits (*words.shape, s, s) of a split, which random words choose, and their classes."""
        part = self._parts[split] = Images(*(x.to(words.device) for x in self._parts[split]))
        at = words % len(part.images)
        return Images(part.images[at], part.targets[at])


def paste(digits: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Return canvases (N, size, size), each zero except for one digit.

    Args:
        digits: (N, s, s).
        top, left: (N,) int64, row and column of each digit's first pixel.
        size: pixels of a canvas's side.
    """
    s = digits.shape[-1]
    places = torch.arange(size, device=digits.device)
    rows, columns = places - top[:, None], places - left[:, None]  # (N, size)
    inside = ((rows >= 0) & (rows < s))[:, :, None] & ((columns >= 0) & (columns < s))[:, None]
    at = torch.arange(len(digits), device=digits.device)[:, None, None]
    return digits[at, rows.clamp(0, s - 1)[:, :, None], columns.clamp(0, s - 1)[:, None]] * inside
