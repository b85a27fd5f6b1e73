"""Images of black and white pixels, to be generated pixel by pixel."""

from typing import Any

from gridlstm.data.base import PixelBatch
from gridlstm.data.image_files import ImageSource
from gridlstm.data.images import ImageData
from gridlstm.data.spec import ImageSpec


class BinaryImages(ImageData):
    """A published set of grey images, each pixel 1 if it is at least ``THRESHOLD`` of 255 and otherwise 0.

    The threshold is fixed, so every epoch has the same images. These are other images than the ones that Larochelle
    drew once with a pixel's brightness as its probability: nats on them cannot be compared with published ones.

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

    def collate(self, samples: Any) -> PixelBatch:  # type: ignore[override]  # another batch for other tasks
        white = samples.images >= self.THRESHOLD
        return PixelBatch(2 * white.float() - 1, white[:, 0].long())
