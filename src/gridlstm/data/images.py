"""Images with one class each, kept whole in memory."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gridlstm.data.augmentation import Augmentation
from gridlstm.data.base import ImageBatch
from gridlstm.data.image_based import ImageBased
from gridlstm.data.image_files import Images, ImageSource
from gridlstm.data.map_style import Drawn, MapData
from gridlstm.data.spec import ImageSpec
from gridlstm.errors import UserError


class ImageData(ImageBased, MapData):
    """Published set of images; the end of its training part is the validation split.

    Pixels are scaled to mean 0 and variance 1 over the training split, channel by channel. A checkpoint stores this
    scaling, and a network that is evaluated on other images keeps it. Training images are shifted and rotated anew in
    every epoch, by amounts that depend on (seed, epoch, image) alone.

    Args:
        source: the set.
        batch_size, seed: see ``SequenceData``.
        num_val: images of the validation split.
        max_shift, max_rotation: see ``Augmentation``.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        seed: int,
        num_val: int,
        max_shift: int = 0,
        max_rotation: float = 0.0,
    ) -> None:
        super().__init__(batch_size, seed)
        if num_val < 1:
            raise ValueError(f"num_val must be at least 1, got {num_val}.")
        self.source = source
        self.num_val = num_val
        self.augmentation = Augmentation(max_shift, max_rotation)
        side = min(source.spec.height, source.spec.width)
        if max_shift >= side:
            raise ValueError(f"max_shift must be below the {side} pixels of an image's side, got {max_shift}.")
        self._parts: dict[str, Images] | None = None

    @property
    def spec(self) -> ImageSpec:
        return self.source.spec

    def test_on_all(self) -> None:
        raise ValueError(f"{self.called} has a test of its own")

    def check(self) -> None:
        self._check_split(self.source.sizes[0])
        super().check()

    @property
    def batches_per_epoch(self) -> int:
        return max(1, round(len(self.dataset("train")) / self.batch_size))

    def dataset(self, split: Literal["train", "val", "test"]) -> Any:
        """Return the images of a split; before they are read, a range as long as the split of the published set."""
        if self._parts is None:
            train, test = self.source.sizes
            return range({"train": train - self.num_val, "val": self.num_val, "test": test}[split])
        part = self._parts[split]
        return _Augmented(part, self.augmentation, self.seed) if split == "train" else _Plain(part)

    def collate(self, samples: Any) -> ImageBatch:
        """Return a batch of scaled images from the images that ``dataset`` returned for a list of indices."""
        return ImageBatch((samples.images - self.mean) / self.std, samples.targets)

    def divide(self, train: Images, test: Images) -> None:
        """Divide the images into splits, and compute the mean and standard deviation that scale them."""
        self._check_split(len(train.images))
        first = len(train.images) - self.num_val
        self._parts = {
            "train": Images(*(x[:first] for x in train)),
            "val": Images(*(x[first:] for x in train)),
            "test": test,
        }
        self.mean, self.std = _moments(self._parts["train"].images)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()  # reads the images
        return state | {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "mean" in state_dict:  # absent from checkpoints of older runs
            self.mean, self.std = (torch.tensor(state_dict[name])[:, None, None] for name in ("mean", "std"))

    def _check_split(self, images: int) -> None:
        if self.num_val >= images:
            raise UserError(
                f"num_val={self.num_val} leaves none of the {images:,} training images of {self.called} to train on. "
                f"Use a smaller number."
            )


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel, (channels, 1, 1) float32, of uint8 images."""
    channels = images.shape[1]
    counts = torch.stack([images[:, channel].flatten().bincount(minlength=256) for channel in range(channels)]).double()
    shares, values = counts / counts.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64)
    mean = shares @ values
    variance = shares @ values**2 - mean**2
    std = variance.clamp(min=1).sqrt()  # at least 1, because a blank channel has variance 0
    return mean.float()[:, None, None], std.float()[:, None, None]


class _Plain(Dataset[Images]):
    """Images as they are."""

    def __init__(self, part: Images) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part.images)

    def __getitems__(self, indices: list[int]) -> Images:
        at = torch.tensor(indices)
        return Images(self.part.images[at], self.part.targets[at])


class _Augmented(_Plain):
    """Images changed anew for every epoch."""

    def __init__(self, part: Images, augmentation: Augmentation, seed: int) -> None:
        super().__init__(part)
        self.augmentation = augmentation
        self.seed = seed

    def __getitems__(self, indices: list[Drawn]) -> Images:  # type: ignore[override]  # training uses Drawn indices
        images, targets = super().__getitems__(list(indices))
        sample = torch.tensor([drawn.epoch * len(self) + drawn for drawn in indices])
        return Images(self.augmentation(images, (self.seed,), sample), targets)
