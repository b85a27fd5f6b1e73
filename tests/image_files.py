"""Write small images in the file format of MNIST."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from gridlstm.data.image_files import FILES, Cifar10, Images


def idx(array: np.ndarray) -> bytes:
    """Return the content of an idx file."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def digits(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images and their classes: noise with a bright block, whose position shows the class."""
    draw = np.random.default_rng((seed, number))
    labels = np.arange(number) % 10
    images = draw.integers(0, 60, (number, 28, 28))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[8 * row + 2 : 8 * row + 8, 7 * column : 7 * column + 5] = 255
    return images, labels


def write_digits(directory: Path, train: int = 60, test: int = 20) -> Path:
    """Write four compressed files of digits into ``directory``/mnist; return the directory."""
    parts = [*digits(train, seed=1), *digits(test, seed=2)]
    (directory / "mnist").mkdir(parents=True)
    for name, part in zip(FILES, parts, strict=True):
        (directory / "mnist" / f"{name}.gz").write_bytes(gzip.compress(idx(part), mtime=0))
    return directory


def give_coloured_images(monkeypatch: pytest.MonkeyPatch, train: int = 60, test: int = 20) -> None:
    """Let CIFAR-10 be noise: its files are read only if they are the published ones."""
    draw = torch.Generator().manual_seed(0)
    parts = [
        Images(
            torch.randint(256, (number, 3, 32, 32), dtype=torch.uint8, generator=draw),
            torch.randint(10, (number,), generator=draw),
        )
        for number in (train, test)
    ]
    for name, value in (("check", None), ("prepare", None), ("read", tuple(parts))):
        monkeypatch.setattr(Cifar10, name, lambda self, value=value: value)
