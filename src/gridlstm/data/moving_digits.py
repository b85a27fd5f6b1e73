"""Digits that move over a canvas and bounce off its sides.

Shape legend: B samples, T frames that a network reads, N digits, s pixels of a digit's side.
"""

import torch
from torch import Tensor

from gridlstm.data.base import VideoBatch
from gridlstm.data.counter import random_words
from gridlstm.data.image_files import ImageSource
from gridlstm.data.placed_digits import MOST_DIGITS, PlacedDigits, paste
from gridlstm.data.spec import VideoSpec


class MovingDigits(PlacedDigits):
    """Digits in straight motion; each frame's target is the next frame (a small version of Srivastava et al. 2015).

    Let r be the side of the canvas minus the side of a digit. At time t, a digit is at row
    r - abs(r - (y + v t) mod 2 r), so it turns back where it touches a side. The column follows the same formula with
    its own y and v. Each y is drawn from 0 to r, and each v from -``max_speed`` to ``max_speed`` without 0. Digits pass
    over each other.

    A pixel is lit if the brightness of a digit there is at least ``INK``. Frames have values -1 and 1.

    The first frame does not show the speed, so the second cannot be predicted exactly. A sample is a function of
    (seed, split, index).

    Args:
        source, size, digit_size, batch_size, seed, num_val, num_test: see ``PlacedDigits``.
        num_digits: N, at most ``MOST_DIGITS``.
        frames: T; a sample has one more frame, the last to predict.
        max_speed: largest speed along each side, in pixels a frame; at most r.

    Raises:
        ValueError: see ``PlacedDigits``, or a number is out of range.
    """

    INK = 0.5

    def __init__(
        self,
        source: ImageSource,
        size: int,
        digit_size: int,
        num_digits: int,
        frames: int,
        max_speed: int,
        batch_size: int,
        seed: int,
        num_val: int,
        num_test: int,
    ) -> None:
        super().__init__(source, size, digit_size, batch_size, seed, num_val, num_test)
        room = size - digit_size
        if room == 0:
            raise ValueError(f"size must be above digit_size={digit_size}, or digits have no room to move, got {size}.")
        if not 1 <= num_digits <= MOST_DIGITS:
            raise ValueError(f"num_digits must be from 1 to {MOST_DIGITS}, got {num_digits}.")
        if frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}.")
        if not 1 <= max_speed <= room:
            raise ValueError(f"max_speed must be from 1 to {room}, the room of a digit on the canvas, got {max_speed}.")
        self.num_digits = num_digits
        self.frames = frames
        self.max_speed = max_speed

    @property
    def spec(self) -> VideoSpec:
        return VideoSpec(channels=1, height=self.size, width=self.size, frames=self.frames)

    def generate(self, key: tuple[int, ...], index: Tensor) -> VideoBatch:
        words = random_words(key, index, 5 * self.num_digits).view(len(index), self.num_digits, 5)
        digits = self.digits(key[1], words[..., 0]).images  # (B, N, s, s)
        top, left = self._path(words[..., 1], words[..., 3]), self._path(words[..., 2], words[..., 4])  # (B, N, T + 1)
        every = digits[:, :, None].expand(*top.shape, *digits.shape[2:]).flatten(0, 2)
        placed = paste(every, top.flatten(), left.flatten(), self.size).unflatten(0, top.shape)
        lit = (placed >= self.INK).any(1)[:, :, None]  # (B, T + 1, 1, size, size)
        return VideoBatch(2 * lit[:, :-1].to(digits.dtype) - 1, lit[:, 1:])

    def _path(self, start: Tensor, speed: Tensor) -> Tensor:
        """Return the places (B, N, T + 1) of digits along one side of the canvas, from random words (B, N)."""
        room = self.size - self.digit_size
        v = speed % (2 * self.max_speed) - self.max_speed
        v = v + (v >= 0)
        times = torch.arange(self.frames + 1, device=start.device)
        return room - (room - (start[..., None] % (room + 1) + v[..., None] * times) % (2 * room)).abs()
