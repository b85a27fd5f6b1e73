"""Write small images in the file format of MNIST."""

import gzip
from pathlib import Path

import numpy as np

from gridlstm.data.image_files import FILES


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
