"""Images of black and white pixels, to be generated pixel by pixel."""

from typing import Any

from gridlstm.data.base import PixelBatch
from gridlstm.data.image_files import ImageSource
from gridlstm.data.images import ImageData
from gridlstm.data.spec import ImageSpec


class BinaryImages(ImageData):
    """Published set of grey images in black and white: a pixel is 1 if it is at least ``THRESHOLD`` of 255, else 0.

    The threshold is fixed, so every epoch has the same images. Larochelle's published binary images are different: he
    drew each pixel once, with its brightness as the probability of 1. Nats on the images here therefore cannot be
    compared with published nats.

    Images have values -1 and 1; the target of a pixel is its own value, 0 or 1.

    Args:
        source: set of images with one channel.
        batch_size, seed, num_val: see ``ImageData``.

    Raises:
        ValueError: a number is out of its range, or images have several channels.
    """

    THRESHOLD = 128

    def __init__(self, source: ImageSource, batch_size: int, seed: int, num_val: int) -> None:
        super().__init__(source, batch_size, seed, num_val)
        if source.spec.channels != 1:
            raise ValueError(f"source must have images of one channel, got {source.spec}.")

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(1, self.source.spec.height, self.source.spec.width, classes=2)

    def collate(self, samples: Any) -> PixelBatch:  # type: ignore[override]  # tasks on pixels need another batch type
        white = samples.images >= self.THRESHOLD
        return PixelBatch(2 * white.float() - 1, white[:, 0].long())
