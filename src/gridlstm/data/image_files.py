"""Published sets of images: find, check and read their files, and download them with torchvision."""

import gzip
import hashlib
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gridlstm.data.files import only_process
from gridlstm.data.spec import ImageSpec
from gridlstm.errors import UserError

log = logging.getLogger(__name__)


class Images(NamedTuple):
    """Images with one class each."""

    images: Tensor
    """(N, channels, height, width) uint8."""
    targets: Tensor
    """(N,) int64."""


class ImageSource:
    """Set of images in two parts, one for training and one for the test.

    A source reads nothing when it is created.

    Args:
        data_dir: directory that is searched for the set, and to which a missing set is downloaded.

    Raises:
        ValueError: ``data_dir`` is a file.
    """

    name: str
    """Name of the set in messages."""
    spec: ImageSpec
    sizes: tuple[int, int]
    """Number of training images and number of test images in the published set."""
    foreign: tuple[str, ...] = ()
    """Names of the files that ``read`` found to differ from the published ones."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = Path(data_dir).expanduser()
        if self.data_dir.is_file():
            raise ValueError(f"data_dir must be a directory, got the file {data_dir}.")

    def check(self) -> None:
        """Raise UserError if the set is certainly not available, without reading or downloading it."""

    def prepare(self) -> None:
        """Download the set if it is not in ``data_dir``.

        Raises:
            UserError: the set cannot be downloaded.
        """
        raise NotImplementedError(f"{type(self).__name__} must define prepare")

    def read(self) -> tuple[Images, Images]:
        """Return the training images and the test images.

        Raises:
            UserError: a file is missing or damaged, or its contents are not as expected.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read")


class Kind(NamedTuple):
    """Set of images in four idx files."""

    folder: str
    """Folder in ``data_dir`` for the user's own files; torchvision uses another folder."""
    md5: Mapping[str, str]
    """MD5 sums of the unpacked files, as published."""
    class_names: tuple[str, ...] = ()
    """Names of the classes; () if their numbers are their names."""


FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
)  # fmt: skip
_IMAGES, _LABELS = 2051, 2049
_HOLDS = {_IMAGES: "images", _LABELS: "labels"}


def _idx_files(folder: Path) -> dict[str, Path]:
    """Return the paths of the files that a folder has, by published name.

    Mirrors write train-images.idx3-ubyte instead of train-images-idx3-ubyte. Of several files, the one with the
    published name is returned, and of these the packed one.
    """
    found = {}
    for name in FILES:
        for spelling in (name.replace("-idx", ".idx"), name):
            for path in (folder / spelling, folder / f"{spelling}.gz"):
                if path.is_file():
                    found[name] = path
    return found


class IdxFiles(ImageSource):
    """MNIST (LeCun et al. 1998), or a set of the same form: 60,000 and 10,000 grey images of 28 x 28 pixels.

    The four files may be packed (.gz) or not, with their published names or as train-images.idx3-ubyte. Those of MNIST
    are in ``data_dir``/mnist, or in ``data_dir``/MNIST/raw, where torchvision puts them. Other images of that size may
    replace the published ones; a warning is then logged.

    Args:
        name: MNIST or FashionMNIST (Xiao et al. 2017).
        data_dir: see ``ImageSource``.

    Raises:
        ValueError: ``name`` is neither of these, or see ``ImageSource``.
    """

    KINDS: ClassVar[Mapping[str, Kind]] = {
        "MNIST": Kind(
            "mnist",
            {
                FILES[0]: "6bbc9ace898e44ae57da46a324031adb",
                FILES[1]: "a25bea736e30d166cdddb491f175f624",
                FILES[2]: "2646ac647ad5339dbf082846283269ea",
                FILES[3]: "27ae3e4e09519cfbb04c329615203637",
            },
        ),
        "FashionMNIST": Kind(
            "fashion_mnist",
            {
                FILES[0]: "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                FILES[1]: "9018921c3c673c538a1fc5bad174d6f9",
                FILES[2]: "8181f5470baa50b63fa0f6fddb340f0a",
                FILES[3]: "15d484375f8d13e6eb1aabb0c3f46965",
            },
            (
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
        ),
    }

    sizes = (60_000, 10_000)

    def __init__(self, name: str, data_dir: str) -> None:
        super().__init__(data_dir)
        if name not in self.KINDS:
            raise ValueError(f"name must be one of {', '.join(self.KINDS)}, got {name!r}.")
        self.name = name
        self.spec = ImageSpec(channels=1, height=28, width=28, classes=10, class_names=self.KINDS[name].class_names)
        self.folders = [self.data_dir / self.KINDS[name].folder, self.data_dir / name / "raw"]

    def check(self) -> None:
        if self._found() is None:
            self._check_downloader()

    def prepare(self) -> None:
        if self._found() is not None:
            return
        self._check_downloader()
        from torchvision import datasets

        with _downloading(self.name, self.data_dir, self.folders[0]):
            if self._found() is None:  # another process may have been faster
                getattr(datasets, self.name)(str(self.data_dir), download=True)

    def read(self) -> tuple[Images, Images]:
        files = self._found()
        if files is None:
            raise UserError(f"{self.name} is not in {self._places}. Run again to download it.")
        contents = [self._unpacked(file) for file in files]
        self._compare(files, contents)
        images, labels, test_images, test_labels = zip(files, contents, strict=True)
        return self._part(images, labels), self._part(test_images, test_labels)

    @property
    def _places(self) -> str:
        return " or ".join(map(str, self.folders))

    def _check_downloader(self) -> None:
        _check_torchvision(
            f"{self.name} is not in {self._places}, and torchvision, which downloads it, is not installed",
            "Put its files there, or run",
        )

    def _found(self) -> list[Path] | None:
        """Return the four files from the first folder that contains all of them, or None.

        Raises:
            UserError: no folder has all of them, and the user's own has some. This is not an error in torchvision's
                folder, because a download completes it.
        """
        found = [_idx_files(folder) for folder in self.folders]
        for files in found:
            if len(files) == len(FILES):
                return list(files.values())
        if found[0]:
            missing = [name for name in FILES if name not in found[0]]
            raise UserError(
                f"{self.folders[0]} lacks {', '.join(missing)} of {self.name}'s four files. Put them there, packed "
                f"(.gz) or not. Or move the other files away and run again to download {self.name}."
            )
        return None

    def _compare(self, files: list[Path], contents: list[bytes]) -> None:
        """Set ``foreign``, and log a warning if there are any.

        Raises:
            UserError: a file is a published one under another name, such as the test images as training images.
        """
        found = [hashlib.md5(content).hexdigest() for content in contents]
        expected = self.KINDS[self.name].md5
        published = {md5: (kind, name) for kind, own in self.KINDS.items() for name, md5 in own.md5.items()}
        for name, file, md5 in zip(FILES, files, found, strict=True):
            kind, own_name = published.get(md5, (self.name, name))
            if (kind, own_name) != (self.name, name):
                raise UserError(f"{file} holds {kind}'s {own_name}, expected {self.name}'s {name}. {self._replace}")
        self.foreign = tuple(
            file.name for name, file, md5 in zip(FILES, files, found, strict=True) if md5 != expected[name]
        )
        if self.foreign:
            log.warning(
                "some files of %s in %s are not the published ones, so results are for other data: %s",
                self.name,
                files[0].parent,
                ", ".join(self.foreign),
            )

    def _part(self, of_images: tuple[Path, bytes], of_labels: tuple[Path, bytes]) -> Images:
        images, labels = self._numbers(*of_images, _IMAGES), self._numbers(*of_labels, _LABELS)
        images_file, labels_file = of_images[0], of_labels[0]
        spec = self.spec
        if images.shape[1:] != (spec.height, spec.width):
            raise UserError(
                f"{images_file} holds images of {images.shape[1]} x {images.shape[2]} pixels, expected {spec.height} x "
                f"{spec.width}. {self._replace}"
            )
        if len(images) != len(labels):
            raise UserError(
                f"{images_file} holds {len(images):,} images and {labels_file} {len(labels):,} labels, expected "
                f"one label for each image. {self._replace}"
            )
        if len(labels) and int(labels.max()) >= spec.classes:
            raise UserError(
                f"{labels_file} holds the label {labels.max()}, expected 0 to {spec.classes - 1}. {self._replace}"
            )
        return Images(torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64)))

    def _unpacked(self, file: Path) -> bytes:
        try:
            content = file.read_bytes()
            if file.suffix == ".gz":
                return gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{file} cannot be read: {error}. {self._replace}") from error
        if content.startswith(b"\x1f\x8b"):
            raise UserError(f"{file} is packed by gzip, so its name must end in .gz. Rename it to {file.name}.gz.")
        return content

    def _numbers(self, file: Path, content: bytes, expected: int) -> np.ndarray:
        """Return the numbers of an idx file as an array.

        The file has four bytes that name its kind, then the extents as big-endian words, then one byte for each number.
        """
        magic = int.from_bytes(content[:4], "big")
        if magic != expected:
            begins = f"begins with {content[:4].hex()}" if content else "is empty"
            holds = f"holds {_HOLDS[magic]}" if magic in _HOLDS else begins
            raise UserError(
                f"{file} {holds}, expected {_HOLDS[expected]} (an idx file that begins with {expected:08x}). "
                f"{self._replace}"
            )
        dimensions = magic & 0xFF
        header = 4 + 4 * dimensions
        if len(content) < header:
            raise UserError(
                f"{file} has {len(content)} bytes, expected {header} or more: an idx file of {_HOLDS[magic]} begins "
                f"with its {dimensions} extents. {self._replace}"
            )
        extents = np.frombuffer(content[4:header], ">u4").tolist()
        if len(content) != header + math.prod(extents):
            raise UserError(
                f"{file} has {len(content):,} bytes, expected {header + math.prod(extents):,} for "
                f"{' x '.join(map(str, extents))} numbers. {self._replace}"
            )
        return np.frombuffer(content, np.uint8, offset=header).reshape(extents)

    @property
    def _replace(self) -> str:
        return f"Put {self.name}'s own file there, or move its folder away and run again to download {self.name}."


class Cifar10(ImageSource):
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 colour images of 32 x 32 pixels, as torchvision reads them.

    The set is in ``data_dir``/cifar-10-batches-py. Its files are pickles, which are read only if their MD5 is the
    published one.

    Args:
        data_dir: see ``ImageSource``.
    """

    name = "CIFAR-10"
    spec = ImageSpec(
        channels=3,
        height=32,
        width=32,
        classes=10,
        class_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    )
    sizes = (50_000, 10_000)

    def __init__(self, data_dir: str) -> None:
        super().__init__(data_dir)
        self.folder = self.data_dir / "cifar-10-batches-py"

    def check(self) -> None:
        _check_torchvision(f"{self.name} is read by torchvision, which is not installed")

    def prepare(self) -> None:
        self.check()
        if not self._damages():
            return
        from torchvision.datasets import CIFAR10

        def damage() -> str | None:
            archive = self.data_dir / CIFAR10.filename
            return _damage(archive, CIFAR10.tgz_md5) if archive.exists() else None

        with _downloading(self.name, self.data_dir, self.folder, damage):
            if not self.folder.exists():  # read refuses damaged files
                CIFAR10(str(self.data_dir), download=True)

    def read(self) -> tuple[Images, Images]:
        from torchvision.datasets import CIFAR10

        if damages := self._damages():
            first, *others = damages.items()
            also = f"; {', '.join(name for name, _ in others)}: missing or damaged too" if others else ""
            raise UserError(
                f"{first[1]}{also}. Put {self.name}'s own files there. Or move {self.folder} away and run again, with "
                f"{CIFAR10.filename} in {self.data_dir} or a network to download it."
            )

        train, test = (CIFAR10(str(self.data_dir), train=train) for train in (True, False))
        return _of_torchvision(train), _of_torchvision(test)

    def _damages(self) -> dict[str, str]:
        """Return the names of files that are missing or not the published ones, and what is wrong with each."""
        from torchvision.datasets import CIFAR10

        files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
        damages = {name: _damage(self.folder / name, md5) for name, md5 in files}
        return {name: damage for name, damage in damages.items() if damage is not None}


def _damage(file: Path, md5: str) -> str | None:
    """Return what is wrong with a published file, and its expected MD5; None if it has that MD5."""
    try:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "md5").hexdigest()
            size = content.tell()
    except FileNotFoundError:
        return f"{file} is missing, expected the published file (MD5 {md5})"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}, expected the published file (MD5 {md5})"
    if found == md5:
        return None
    return f"{file} is damaged or incomplete: its {size:,} bytes have MD5 {found}, expected {md5}"


def _of_torchvision(part: Any) -> Images:
    return Images(torch.from_numpy(part.data).movedim(3, 1).contiguous(), torch.tensor(part.targets))


def _check_torchvision(problem: str, remedy: str = "Run") -> None:
    """Raise UserError with the problem and what to do, if torchvision is not installed."""
    if find_spec("torchvision") is None:
        raise UserError(f"{problem}. {remedy}: pip install 'gridlstm[images]'")


@contextmanager
def _downloading(
    name: str, data_dir: Path, folder: Path, damage: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Let one process download at a time, and turn its errors into a UserError of one line.

    Args:
        name, data_dir, folder: of the set.
        damage: returns what is wrong with an archive that the download should have replaced; None if there is none.

    Raises:
        UserError: no connection, a wrong checksum, or a directory that cannot be written.
    """
    try:
        with only_process(data_dir / f".{name}.lock", f"downloading {name}"):
            yield
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        reason = " ".join(str(error).split())
        if (damaged := damage()) is not None:
            raise UserError(
                f"{damaged}, and {name} could not be downloaded again: {reason}. Replace it by a whole archive, or put "
                f"{name}'s files into {folder} by hand."
            ) from error
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded there: {reason}. Put its files into {folder} by "
            f"hand, or choose another directory with data_dir=…."
        ) from error
