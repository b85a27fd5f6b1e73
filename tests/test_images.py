"""Image classification, from the files to a tested network."""

import csv
import gzip
import hashlib
import io
import json
import logging
import pickle
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from omegaconf import DictConfig
from tests.conftest import look_at
from tests.image_files import digits, give_coloured_images, idx, write_digits
from torch import Tensor
from torch.utils.data import DataLoader

from gridlstm.config import choices, compose_model
from gridlstm.data import image_files
from gridlstm.data.augmentation import Augmentation
from gridlstm.data.base import ImageBatch
from gridlstm.data.image_files import FILES, Cifar10, IdxFiles, ImageSource
from gridlstm.data.images import ImageData
from gridlstm.data.spec import ImageSpec
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.files import to_png
from gridlstm.look import image as look_image
from gridlstm.look.image import see
from gridlstm.training.build import build, make_data, make_task, unread_data
from gridlstm.training.callbacks import image_pictures
from gridlstm.training.checkpoint import load_content
from gridlstm.training.job import run_job
from gridlstm.training.task_models import fits

SMALL = ["task.data.num_val=20", "task.data.batch_size=8", "model.patch=14"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("images"))


@pytest.fixture
def image_job(job: Callable[..., DictConfig], directory: Path) -> Callable[..., DictConfig]:
    """Return a function that composes a toy job on small images."""

    def make(*overrides: str, **options: Any) -> DictConfig:
        return job(f"data_dir={directory}", *SMALL, *overrides, task="mnist", model="grid3d", **options)

    return make


def data(directory: Path, **options: float) -> ImageData:
    given = {"batch_size": 8, "seed": 3, "num_val": 20, "max_shift": 2, "max_rotation": 15.0, **options}
    made = ImageData(IdxFiles("MNIST", str(directory)), **given)  # type: ignore[arg-type]
    made.setup("fit")
    return made


def on_rank(made: ImageData, rank: int, world_size: int) -> ImageData:
    # The data read only these attributes of a trainer.
    made.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, training=True)  # type: ignore[assignment]
    return made


def batches(made: ImageData, number: int, loader: str = "train") -> list[ImageBatch]:
    return list(islice(getattr(made, f"{loader}_dataloader")(), number))


# The files.


def test_splits_are_the_first_and_the_last_training_images_and_the_test(directory: Path) -> None:
    made = data(directory)
    assert [len(made.dataset(split)) for split in ("train", "val", "test")] == [40, 20, 20]
    assert made.batches_per_epoch == 5
    val = torch.cat([batch.images for batch in batches(made, 9, "val")])
    expected = (torch.from_numpy(digits(60, seed=1)[0][40:]).float()[:, None] - made.mean) / made.std
    torch.testing.assert_close(val, expected, rtol=0, atol=1e-6)


def test_pixels_have_mean_0_and_variance_1(directory: Path) -> None:
    made = data(directory, max_shift=0, max_rotation=0.0)
    pixels = torch.cat([batch.images for batch in batches(made, 5)])
    assert abs(pixels.mean()) < 1e-5
    assert abs(pixels.std(correction=0) - 1) < 1e-5


def test_the_genuine_mnist_is_divided_as_in_the_paper(real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not (real_data / "mnist").is_dir():
        pytest.skip("MNIST is not in GRIDLSTM_DATA")
    made = ImageData(IdxFiles("MNIST", str(real_data)), batch_size=128, seed=1, num_val=10_000)
    made.setup("fit")
    assert not caplog.text
    splits = {split: made.dataset(split).part for split in ("train", "val", "test")}
    assert {split: len(part.images) for split, part in splits.items()} == {
        "train": 50_000,
        "val": 10_000,
        "test": 10_000,
    }
    # The counts of the published test files.
    assert splits["test"].targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits["train"].targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert (made.mean.item() / 255, made.std.item() / 255) == pytest.approx((0.1307, 0.3081), abs=1e-3)


def test_unpacked_files_in_the_torchvision_layout_are_read(directory: Path, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).write_bytes(gzip.decompress((directory / "mnist" / f"{name}.gz").read_bytes()))
    source = IdxFiles("MNIST", str(tmp_path))
    source.check()
    for a, b in zip(source.read(), IdxFiles("MNIST", str(directory)).read(), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)


IMAGES, LABELS = f"{FILES[0]}.gz", f"{FILES[1]}.gz"
WHOLE = idx(digits(60, seed=1)[0])
pack = partial(
    gzip.compress, mtime=0
)  # fixed time: the bytes are part of test names, which must be equal in all processes


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (IMAGES, pack(WHOLE)[:-2000], "cannot be read: Compressed file ended before"),
        (IMAGES, b"<html>404</html>", r"cannot be read: Not a gzipped file"),
        (IMAGES, pack(WHOLE)[:-8] + bytes(8), "cannot be read: CRC check failed"),
        (IMAGES, pack(WHOLE[:-5]), r"has 47,051 bytes, expected 47,056 for 60 x 28 x 28 numbers"),
        (IMAGES, pack(WHOLE + b"x"), r"has 47,057 bytes, expected 47,056 for 60 x 28 x 28 numbers"),
        (IMAGES, pack(b""), "is empty, expected images"),
        (IMAGES, pack(WHOLE[:7]), "has 7 bytes, expected 16 or more: an idx file of images begins with its 3 extents"),
        (IMAGES, pack(b"\x89PNG and more"), "begins with 89504e47, expected images"),
        (IMAGES, pack(idx(digits(60)[1])), r"holds labels, expected images \(an idx file that begins"),
        (LABELS, pack(WHOLE), "holds images, expected labels"),
        (IMAGES, pack(idx(np.zeros((60, 20, 28)))), "holds images of 20 x 28 pixels, expected 28 x 28"),
        (IMAGES, pack(idx(np.zeros((59, 28, 28)))), "holds 59 images and .*60 labels, expected one label"),
        (LABELS, pack(idx(np.full(60, 10))), "holds the label 10, expected 0 to 9"),
    ],
)  # fmt: skip
def test_damaged_or_foreign_file_is_named(
    name: str, content: bytes, words: str, directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(directory / "mnist", tmp_path / "mnist")
    (tmp_path / "mnist" / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        data(tmp_path)
    message = str(refused.value)
    assert str(tmp_path / "mnist" / name) in message
    assert message.endswith("Put MNIST's own file there, or move its folder away and run again to download MNIST.")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_published_files_under_other_names_are_refused(name: str, real_data: Path, tmp_path: Path) -> None:
    """Training and test files swapped, and MNIST in the place of Fashion-MNIST."""
    if not (real_data / "mnist").is_dir():
        pytest.skip(f"there is no mnist in {real_data}")
    folder = tmp_path / IdxFiles.KINDS[name].folder
    folder.mkdir()
    for file in (real_data / "mnist").glob("*-idx*"):
        own = file.name
        if name == "MNIST":
            swapped = {"train": "t10k", "t10k": "train"}
            kind, _, rest = own.partition("-")
            own = f"{swapped[kind]}-{rest}"
        (folder / own).symlink_to(file)
    with pytest.raises(UserError, match=rf"train-images-idx3-ubyte.* holds MNIST's .*, expected {name}'s train-images"):
        IdxFiles(name, str(tmp_path)).read()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_whose_names_have_a_dot_before_idx_are_read(suffix: str, directory: Path, tmp_path: Path) -> None:
    """Kaggle and other mirrors spell the names so."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in FILES:
        packed = (directory / "mnist" / f"{name}.gz").read_bytes()
        (folder / f"{name.replace('-idx', '.idx')}{suffix}").write_bytes(packed if suffix else gzip.decompress(packed))
    assert (folder / f"train-images.idx3-ubyte{suffix}").is_file()
    source = IdxFiles("MNIST", str(tmp_path))
    source.check()
    for a, b in zip(source.read(), IdxFiles("MNIST", str(directory)).read(), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
    assert f"t10k-labels.idx1-ubyte{suffix}" in source.foreign, "messages name the files that exist"
    (folder / f"train-labels.idx1-ubyte{suffix}").unlink()
    with pytest.raises(UserError, match="lacks train-labels-idx1-ubyte of MNIST's four files"):
        source.check()


def test_a_file_with_the_published_name_is_read_before_one_with_a_dot(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "mnist", tmp_path / "mnist")
    (tmp_path / "mnist" / "train-labels.idx1-ubyte.gz").write_bytes(b"damaged")
    assert len(IdxFiles("MNIST", str(tmp_path)).read()[0].images) == 60


def test_packed_file_needs_the_name_of_one(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "mnist", tmp_path / "mnist")
    (tmp_path / "mnist" / IMAGES).rename(tmp_path / "mnist" / FILES[0])
    with pytest.raises(UserError, match=rf"is packed by gzip, so its name must end in \.gz\. Rename it to {IMAGES}\."):
        data(tmp_path)


def test_missing_file_of_a_set_is_named(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory / "mnist", tmp_path / "mnist")
    (tmp_path / "mnist" / LABELS).unlink()
    source = IdxFiles("MNIST", str(tmp_path))
    with pytest.raises(UserError, match=rf"lacks {FILES[1]} of MNIST's four files\. Put them there"):
        source.check()
    shutil.copytree(directory / "mnist", tmp_path / "MNIST" / "raw")
    source.check()
    assert len(source.read()[0].images) == 60


def test_partial_download_is_completed_by_prepare(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    shutil.copy(directory / "mnist" / IMAGES, raw)

    def download(root: str, download: bool) -> None:
        assert (root, download) == (str(tmp_path), True)
        shutil.copytree(directory / "mnist", raw, dirs_exist_ok=True)

    monkeypatch.setattr(datasets, "MNIST", download)
    source = IdxFiles("MNIST", str(tmp_path))
    with pytest.raises(UserError, match=r"MNIST is not in .* or .*raw\. Run again to download it\."):
        source.read()
    source.prepare()
    assert len(source.read()[0].images) == 60


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_images_other_than_the_published_are_logged(
    suffix: str, directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(directory / "mnist", tmp_path / "mnist")
    for packed in list((tmp_path / "mnist").iterdir()) if not suffix else []:
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    data(tmp_path)
    assert f"so results are for other data: {', '.join(name + suffix for name in FILES)}" in caplog.text


def test_missing_torchvision_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "find_spec", lambda name: None)
    for source in (IdxFiles("FashionMNIST", str(tmp_path)), Cifar10(str(tmp_path))):
        for refused in (source.check, source.prepare):
            with pytest.raises(
                UserError, match=r"torchvision, which .*is not installed\. .*pip install 'gridlstm\[images\]'"
            ):
                refused()


def test_failed_download_raises_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading x:\nTried http://x, got:\n<urlopen error>")

    for kind, source in (("MNIST", IdxFiles("MNIST", str(tmp_path))), ("CIFAR10", Cifar10(str(tmp_path)))):
        monkeypatch.setattr(getattr(datasets, kind), "download", fail)
        with pytest.raises(
            UserError, match=r"could not be downloaded there: Error downloading x: Tried .*data_dir=…\.$"
        ):
            source.prepare()


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the batch files of a small CIFAR-10 and their archive without a network; return their directory."""
    datasets, utils = pytest.importorskip("torchvision.datasets"), pytest.importorskip("torchvision.datasets.utils")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(utils, "_get_redirect_url", fail)
    made, folder = datasets.CIFAR10, tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    images = {"data": np.zeros((2, 3 * 32 * 32), np.uint8), "labels": [3, 1]}
    for option in ("train_list", "test_list"):
        for name, _ in getattr(made, option):
            (folder / name).write_bytes(pickle.dumps(images))
        monkeypatch.setattr(made, option, [[name, md5(folder / name)] for name, _ in getattr(made, option)])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"]}))
    monkeypatch.setattr(made, "meta", made.meta | {"md5": md5(folder / "batches.meta")})
    archive = tmp_path / made.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, folder.name)
    monkeypatch.setattr(made, "tgz_md5", md5(archive))
    return tmp_path


@pytest.mark.parametrize(("content", "size"), [(lambda whole: whole[:-100], None), (lambda _: b"", 0)])
def test_a_damaged_batch_of_cifar_is_named(content: Callable[[bytes], bytes], size: int | None, cifar: Path) -> None:
    source, batch = Cifar10(str(cifar)), cifar / "cifar-10-batches-py" / "data_batch_3"
    whole, expected = batch.read_bytes(), md5(batch)
    batch.write_bytes(content(whole))
    size = len(whole) - 100 if size is None else size
    source.prepare()  # it does not replace files of the user
    with pytest.raises(UserError) as refused:
        source.read()
    message = str(refused.value)
    assert message.startswith(f"{batch} is damaged or incomplete: its {size:,} bytes have MD5 {md5(batch)}, ")
    assert (
        f", expected {expected}. Put CIFAR-10's own files there. Or move {batch.parent} away and run again" in message
    )
    assert "\n" not in message
    batch.parent.rename(cifar / "away")
    source.prepare()
    assert source.read()[0].targets.tolist() == [3, 1] * 5, "as the message says, the archive is unpacked"


def test_missing_and_unreadable_batches_of_cifar_are_named(cifar: Path) -> None:
    source, folder = Cifar10(str(cifar)), cifar / "cifar-10-batches-py"
    (folder / "data_batch_2").unlink()
    (folder / "test_batch").unlink()
    with pytest.raises(UserError, match=r"data_batch_2 is missing, expected .*; test_batch: missing or damaged too"):
        source.read()
    (folder / "data_batch_2").mkdir()
    with pytest.raises(UserError, match=r"data_batch_2 cannot be read: Is a directory, expected the published file"):
        source.read()


@pytest.mark.parametrize("content", [lambda whole: whole[: len(whole) // 2], lambda _: b"<html>404</html>"])
def test_a_damaged_archive_of_cifar_is_named_without_a_network(content: Callable[[bytes], bytes], cifar: Path) -> None:
    source, archive = Cifar10(str(cifar)), cifar / "cifar-10-python.tar.gz"
    (cifar / "cifar-10-batches-py").rename(cifar / "away")
    expected = md5(archive)
    archive.write_bytes(content(archive.read_bytes()))
    with pytest.raises(UserError) as refused:
        source.prepare()
    assert str(refused.value) == (
        f"{archive} is damaged or incomplete: its {archive.stat().st_size:,} bytes have MD5 {md5(archive)}, expected "
        f"{expected}, and CIFAR-10 could not be downloaded again: no network. Replace it by a whole archive, or put "
        f"CIFAR-10's files into {cifar / 'cifar-10-batches-py'} by hand."
    )


def test_cifar_is_read_with_its_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    source = Cifar10(str(tmp_path))
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3 * 32 * 32), np.uint8)
    names = {"train_list": "data_batch_1", "test_list": "test_batch"}
    for name in names.values():
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 1, 4, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["x"]}))
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: pytest.fail("it downloads a folder that exists"))
    source.prepare()
    with pytest.raises(UserError, match=r"data_batch_1 is damaged or .*; data_batch_2, .*, batches\.meta: missing or"):
        source.read()
    for option, name in names.items():
        monkeypatch.setattr(datasets.CIFAR10, option, [[name, md5(folder / name)]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    train, _ = source.read()
    assert train.images.shape == (4, *(source.spec.channels, source.spec.height, source.spec.width))
    assert train.images[2, 1, 5, 7] == pixels[2, 32 * 32 + 5 * 32 + 7]
    assert train.targets.tolist() == [3, 1, 4, 1]


def test_a_validation_split_leaves_images_to_train_on(directory: Path) -> None:
    with pytest.raises(UserError, match="num_val=60 leaves none of the 60 training images of MNIST to train on"):
        data(directory, num_val=60)


# Augmentation.


def test_a_shift_moves_pixels_and_fills_with_zeros() -> None:
    change = Augmentation(max_shift=3)
    images = torch.randint(256, (40, 2, 9, 7), dtype=torch.uint8)
    sample = torch.arange(40) + 1000
    down, right, _ = change.draw((5,), sample)
    expected = torch.zeros_like(images)
    for image, moved, i, j in zip(images, expected, down.tolist(), right.tolist(), strict=True):
        for row in range(max(i, 0), min(9 + i, 9)):
            for column in range(max(j, 0), min(7 + j, 7)):
                moved[:, row, column] = image[:, row - i, column - j]
    assert torch.equal(change(images, (5,), sample), expected)


def test_all_shifts_and_angles_are_equally_likely() -> None:
    down, right, angle = Augmentation(2, 10.0).draw((1,), torch.arange(25_000))
    counts = (5 * (down + 2) + right + 2).bincount()
    assert counts.shape == (25,)
    assert counts.min() > 850  # 1000 expected, standard deviation 31
    assert counts.max() < 1150
    bins = torch.histc(angle.rad2deg(), bins=10, min=-10, max=10)
    assert bins.min() > 2300  # 2500 expected, standard deviation 47
    assert bins.sum() == 25_000


def test_a_quarter_turn_turns_pixels_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    quarter = torch.tensor([torch.pi / 2], dtype=torch.float64)
    still = torch.zeros(1, dtype=torch.int64)
    monkeypatch.setattr(Augmentation, "draw", lambda *_: (still, still + 1, quarter))
    image = torch.randint(256, (1, 1, 6, 6), dtype=torch.uint8)
    moved = Augmentation(1, 90.0)(image, (0,), still)
    turned = F.pad(torch.rot90(image.float(), -1, (2, 3)), (1, 0))[..., :6]  # then one pixel to the right
    # Bilinear weights are float32.
    torch.testing.assert_close(moved, turned, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rotation", [0.0, 15.0])
def test_a_change_depends_on_seed_epoch_and_image_alone(rotation: float, directory: Path) -> None:
    made = data(directory, max_rotation=rotation)
    dataset = made.dataset("train")
    stream = list(islice(made.train_dataloader().batch_sampler, 12))  # more than two epochs of 40 images
    whole = batches(made, 12)
    for drawn, batch in zip(stream, whole, strict=True):
        for row, index in enumerate(drawn):
            alone = made.collate(dataset.__getitems__([index]))
            assert torch.equal(alone.images[0], batch.images[row])
            assert alone.targets[0] == batch.targets[row]
    seen = {
        (int(index), index.epoch): image
        for drawn, batch in zip(stream, whole, strict=True)
        for index, image in zip(drawn, batch.images, strict=True)
    }
    assert any(not torch.equal(seen[n, 0], seen[n, 1]) for n in range(40)), "a new epoch has new changes"
    other = batches(data(directory, max_rotation=rotation, seed=4), 1)[0]
    assert not torch.equal(other.images, whole[0].images)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_and_a_resumed_run_see_the_same_images(world_size: int, directory: Path) -> None:
    whole = batches(data(directory), 12)
    ranks = [batches(on_rank(data(directory), rank, world_size), 12) for rank in range(world_size)]
    resumed = data(directory)
    resumed.load_state_dict({"batches_seen": 7, "crc32": resumed.crc32})
    for n, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[n].images for rank in ranks]), batch.images)
        assert torch.equal(torch.cat([rank[n].targets for rank in ranks]), batch.targets)
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches(resumed, 5), whole[7:], strict=True))


def test_validation_and_test_images_are_not_changed(directory: Path) -> None:
    for loader in ("val", "test"):
        changed, plain = (batches(data(directory, max_shift=shift), 9, loader) for shift in (2, 0))
        assert all(torch.equal(a.images, b.images) for a, b in zip(changed, plain, strict=True))


def test_numbers_out_of_range_are_refused(directory: Path) -> None:
    for options, words in (
        ({"max_shift": -1}, "max_shift must be a number of pixels, 0 or more, got -1"),
        ({"max_shift": 28}, "max_shift must be below the 28 pixels of an image's side, got 28"),
        ({"max_rotation": 200.0}, "max_rotation must be from 0 to 180 degrees, got 200"),
        ({"num_val": 0}, "num_val must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            data(directory, **options)
    with pytest.raises(ValueError, match=r"data_dir must be a directory, got the file .*t10k-labels-idx1-ubyte\.gz\."):
        IdxFiles("MNIST", str(directory / "mnist" / f"{FILES[3]}.gz"))
    with pytest.raises(ValueError, match=r"name must be one of MNIST, FashionMNIST, got 'EMNIST'"):
        IdxFiles("EMNIST", str(directory))


# The task.


def test_a_run_is_trained_resumed_bit_for_bit_and_evaluated(
    image_job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    changes = ["task.data.max_rotation=10", "task.objective.dropout=0.3"]
    run_job(image_job(*changes, directory="whole"))
    run_job(image_job(*changes, "trainer.max_steps=2", "stages=[fit]", directory="parts"))
    run_job(image_job(*changes, "ckpt_path=last", directory="parts"))
    whole, parts = (load_content(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 4
    assert all(torch.equal(x, parts["state_dict"][name]) for name, x in whole["state_dict"].items())
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["test"]["test/error"] == pytest.approx(1 - result["test"]["test/accuracy"])
    assert result["foreign_files"] == [f"{name}.gz" for name in FILES], "the report names runs on other images"
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    assert evaluate(best, "test", []) == pytest.approx(result["test"], rel=1e-6)
    with pytest.raises(
        UserError, match=r"split=all works for texts only, MNIST has a test of its own\. Use split=val or"
    ):
        evaluate(best, "all", [])
    assert "1x28x28 pixels x 8 rows a step, 10 classes" in caplog.text


def test_a_small_grid_learns(image_job: Callable[..., DictConfig], tmp_path: Path) -> None:
    longer = ["trainer.max_steps=120", "task.val_every=60", "task.data.max_shift=1", "optimizer.lr=0.01"]
    run_job(image_job(*longer, "model.hidden_size=16", "model.patch=7"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["test/error"] == 0


def test_resume_with_other_images_is_refused(
    image_job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_job(image_job("trainer.max_steps=2", "stages=[fit]"))
    other = write_digits(tmp_path / "other", train=61)
    with pytest.raises(UserError, match="the images of MNIST are not those that the checkpoint was trained on"):
        run_job(image_job("ckpt_path=last", f"data_dir={other}"))
    caplog.set_level(logging.WARNING)
    evaluate(tmp_path / "run" / "checkpoints" / "last.ckpt", "test", [])
    assert "since the checkpoint was written" not in caplog.text


def test_changed_test_images_are_noticed(
    image_job: Callable[..., DictConfig], directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(directory / "mnist", tmp_path / "mnist")
    run_job(image_job(f"data_dir={tmp_path}"))
    result = (tmp_path / "run" / "result.json").read_text()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "mnist" / f"{FILES[3]}.gz").write_bytes(pack(idx(np.zeros(20))))
    with pytest.raises(UserError, match="the test images of MNIST are not those that the run had"):
        run_job(image_job(f"data_dir={tmp_path}", "ckpt_path=last"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"] == json.loads(result)["test"]
    evaluate(last, "test", [])
    assert "MNIST has changed since the checkpoint was written" in caplog.text


def test_a_network_keeps_the_scaling_of_its_training_images(
    image_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_job(image_job())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    other = f"data_dir={write_digits(tmp_path / 'other', train=61)}"  # the same test
    expected = evaluate(last, "test", [])
    assert evaluate(last, "test", [other]) == expected
    content = load_content(last)
    for name in ("mean", "std", "test_crc32"):
        del content["ImageData"][name]
    torch.save(content, last)  # as older runs wrote it
    assert evaluate(last, "test", []) == expected
    run_job(image_job("ckpt_path=last", "trainer.max_steps=5"))


def test_evaluation_warns_of_other_splits_and_refuses_options_without_effect(
    image_job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_job(image_job("trainer.max_steps=2", "stages=[fit]", "task.data.num_val=5"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    caplog.set_level(logging.WARNING)
    evaluate(checkpoint, "val", [])
    assert "the evaluated part may include training data" not in caplog.text
    evaluate(checkpoint, "val", ["task.data.num_val=20"])
    assert "the run had task.data.num_val=5: the evaluated part may include training data" in caplog.text
    with pytest.raises(UserError, match=r"task\.data\.num_val=20 has no effect on split=test\. Remove it\."):
        evaluate(checkpoint, "test", ["task.data.num_val=20"])


def test_evaluation_reads_from_the_default_data_directory_if_the_one_of_the_run_is_gone(
    image_job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = write_digits(tmp_path / "there")
    run_job(image_job("trainer.max_steps=2", "stages=[fit]", f"data_dir={there}"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    expected = evaluate(checkpoint, "test", [])
    monkeypatch.setenv("GRIDLSTM_DATA", str(there.rename(tmp_path / "here")))
    assert evaluate(checkpoint, "test", []) == expected


@pytest.mark.parametrize("task", ["mnist", "fashion_mnist", "cifar10"])
def test_every_model_of_images_takes_a_step(task: str, job: Callable[..., DictConfig], tmp_path: Path) -> None:
    torch.manual_seed(1)  # all ReLUs of a small network may be 0
    cfg = job(f"data_dir={tmp_path}", task=task, model="grid3d")
    fitting = [name for name in choices("model") if fits(compose_model(name), cfg.task)]
    assert "grid3d" in fitting
    spec = unread_data(cfg).expected_spec
    assert spec is not None
    batch = ImageBatch(torch.randn(2, *spec.example(1)[0].shape[1:]), torch.tensor([1, 2]))
    for name in fitting:
        cfg.model = compose_model(name)
        cfg.model.hidden_size, cfg.model.num_layers = 4, 2
        network = make_task(cfg, spec)
        network.predict(batch, None).losses.sum().backward()
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, (name, key)
            assert parameter.grad.abs().sum() > 0 or key.startswith("head.hidden"), (name, key)
        assert network(batch.images).shape == (2, spec.classes)


@pytest.mark.parametrize(("read", "features"), [("all", 7 * 7 * 16), ("pooled", 16), ("last_corner", 16)])
@pytest.mark.parametrize("width", ["null", "5"])
def test_read_outs_equal_their_definitions(
    read: str, features: int, width: str, image_job: Callable[..., DictConfig]
) -> None:
    cfg = image_job("model.patch=4", f"task.objective.read={read}", f"task.objective.width={width}")
    task = make_task(cfg, make_data(cfg).spec).double()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    y = task.model(x)  # a patch has 4 x 4 pixels; the scan of the second layer ends at the top left
    seen: Tensor = {"all": y.flatten(1), "pooled": y.mean((1, 2)), "last_corner": y[:, 0, 0]}[read]
    assert seen.shape == (2, features)
    hidden, logits = task.head.hidden, task.head.logits
    expected = logits(seen if hidden is None else torch.relu(hidden(seen)))
    torch.testing.assert_close(task(x), expected, rtol=0, atol=1e-14)
    assert (hidden is None) == (width == "null")


def test_invalid_read_outs_are_refused(image_job: Callable[..., DictConfig]) -> None:
    for option, words in (
        ("read=centre", "task.objective.read must be all, pooled or last_corner, got 'centre'"),
        ("width=0", "width must be a whole number of at least 1, got 0"),
        ("dropout=1.0", r"dropout must be a probability in \[0, 1\), got 1"),
    ):
        cfg = image_job(f"task.objective.{option}")
        with pytest.raises(UserError, match=words):
            make_task(cfg, make_data(cfg).spec)


def test_the_papers_read_out_has_160_million_weights(image_job: Callable[..., DictConfig]) -> None:
    paper = ["model.hidden_size=100", "model.num_layers=4", "model.patch=2"]
    cfg = image_job(*paper, "task.objective.read=all", "task.objective.width=4096")
    spec = make_data(cfg).spec
    with torch.device("meta"):
        head = make_task(cfg, spec).head
    assert head.hidden.weight.shape == (4096, 39_200)


# Pictures.


def test_a_run_draws_its_first_batch_and_its_mistakes(image_job: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_job(image_job(picture=True))
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.png")}
    assert set(pictures) == {"training_batch.png", "confusion.png", "misclassified.png", "learning_curve.png"}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    run_job(image_job("ckpt_path=last", "trainer.max_steps=6", "stages=[fit]", picture=True))
    assert (tmp_path / "run" / "training_batch.png").read_bytes() == pictures["training_batch.png"]


def test_mistakes_are_counted_and_the_worst_come_first(
    image_job: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(image_pictures, "draw_confusion", lambda counts, names: drawn.update(counts=counts))
    monkeypatch.setattr(image_pictures, "draw_images", lambda *shown: drawn.update(shown=shown))
    monkeypatch.setattr(image_pictures, "write_png", lambda *_: None)
    run = build(image_job("stages=[test]", picture=True))
    run.trainer.test(run.task, run.data, verbose=False)
    batch = next(iter(DataLoader(run.data.dataset("test"), batch_size=20, collate_fn=run.data.collate)))  # type: ignore[arg-type]
    run.task.eval()
    with torch.no_grad():
        prediction = run.task.predict(batch, None)
    found = prediction.outputs.argmax(-1)
    wrong = (found != batch.targets).nonzero().flatten()
    for row in range(10):
        for column in range(10):
            assert drawn["counts"][row, column] == ((batch.targets == row) & (found == column)).sum()
    order = wrong[prediction.losses[wrong].argsort(descending=True, stable=True)]
    shown, names = drawn["shown"]
    assert torch.equal(shown, batch.images[order])
    assert names == [f"{batch.targets[n]} as {found[n]}" for n in order]


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]  # as published


def test_pictures_show_the_names_of_classes(
    job: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    give_coloured_images(monkeypatch)
    drawn: list[Any] = []
    for name in ("draw_confusion", "draw_images"):
        original = getattr(image_pictures, name)

        def draw(images: Tensor, names: list[str], original: Any = original) -> Any:
            drawn.append(list(names))
            return original(images, names)

        monkeypatch.setattr(image_pictures, name, draw)
    run_job(job("task.data.num_val=20", "task.data.batch_size=8", "model.patch=16", task="cifar10", model="grid3d",
                picture=True))  # fmt: skip
    _, test = Cifar10(str(tmp_path)).read()
    batch, confusion, worst = drawn
    assert len(batch) == 8
    assert set(batch) <= set(CIFAR_NAMES)
    assert confusion == CIFAR_NAMES
    wrong = [name.split("\nas ") for name in worst]
    assert all(target != found and {target, found} <= set(CIFAR_NAMES) for target, found in wrong)
    counts = [CIFAR_NAMES[target] for target in test.targets]
    assert all(counts.count(name) >= [target for target, _ in wrong].count(name) for name in CIFAR_NAMES)
    _, picture = look_at({"what": "image", "ckpt": str(tmp_path / "run" / "checkpoints" / "best.ckpt")})
    assert picture.is_file()


def test_names_of_fashion_mnist_are_the_published_ones() -> None:
    """The README of zalandoresearch/fashion-mnist lists them in this order."""
    assert IdxFiles("FashionMNIST", ".").spec.class_names == (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    assert not IdxFiles("MNIST", ".").spec.class_names, "digits are their own names"
    with pytest.raises(ValueError, match="expected 10 class_names or none, got 2"):
        ImageSpec(1, 28, 28, classes=10, class_names=("a", "b"))


@pytest.mark.parametrize("source", [Cifar10("."), IdxFiles("FashionMNIST", "."), IdxFiles("MNIST", ".")])
def test_names_in_pictures_do_not_overlap(source: ImageSource) -> None:
    names = source.spec.class_names or [*"0123456789"]
    pairs = [(n % 10, (n + n // 10) % 10) for n in range(24)]  # also right ones
    titles = [image_pictures.name_of_choice(names, *pair) for pair in pairs]
    figure = image_pictures.draw_images(torch.rand(24, source.spec.channels, 8, 8), titles)
    matrix = image_pictures.draw_confusion(torch.arange(100).view(10, 10), names)
    for drawn, texts in (
        (figure, [axes.title for axes in figure.axes]),
        (matrix, matrix.axes[0].get_xticklabels()),
        (matrix, matrix.axes[0].get_yticklabels()),
    ):
        to_png(drawn)  # lays it out
        boxes = [text.get_window_extent() for text in texts]
        for n, box in enumerate(boxes):
            assert drawn.bbox.x0 <= box.x0 < box.x1 <= drawn.bbox.x1
            assert drawn.bbox.y0 <= box.y0 < box.y1 <= drawn.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:n])


def test_numbers_of_a_confusion_matrix_can_be_read() -> None:
    """The contrast of text and background, as the Web Content Accessibility Guidelines define it, is above 4."""
    counts = torch.arange(1, 101).view(10, 10)
    axes = image_pictures.draw_confusion(counts, [*"0123456789"]).axes[0]
    (shown,) = axes.get_images()
    backgrounds = {str(int(n)): shown.to_rgba(shown.get_array())[divmod(int(n) - 1, 10)] for n in counts.flatten()}

    def luminance(colour: Any) -> float:
        linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for text in axes.texts:
        low, high = sorted([luminance(text.get_color()), luminance(backgrounds[text.get_text()])])
        assert (high + 0.05) / (low + 0.05) > 4, text.get_text()


def test_pixels_of_small_images_are_drawn_sharp() -> None:
    """A picture of 96 digits would be 200 kB with blurred pixels."""
    figure = image_pictures.draw_images((torch.rand(12, 1, 28, 28) > 0.5).float(), [""] * 12)
    grey = imread(io.BytesIO(to_png(figure)))[..., 0]
    assert ((grey == 0) | (grey == 1)).mean() > 0.99


def test_look_says_that_a_gradient_is_the_same_everywhere_below_a_mean(
    image_job: Callable[..., DictConfig],
) -> None:
    for read, words in (("pooled", "the same\neverywhere"), ("last_corner", None)):
        run = build(image_job("model.patch=7", f"task.objective.read={read}"))
        seen = see(run.task, next(iter(run.data.test_dataloader())))
        figure = look_image._draw(seen, run.task.class_names)
        (row, *_) = figure.axes[0].get_subplotspec().get_gridspec().get_geometry()
        last = figure.axes[len(figure.axes) // row - 1]
        assert [text.get_text() for text in last.texts] == ([words] if words else [])
        assert len(last.get_images()) == (0 if words else 1)


def test_colours_are_drawn_as_colours_and_blank_images_as_blank() -> None:
    for images in (torch.rand(13, 3, 8, 8), torch.zeros(2, 1, 8, 8), torch.rand(1, 2, 8, 8)):
        assert to_png(image_pictures.draw_images(images, ["x"] * len(images)))


@pytest.mark.parametrize("model", ["grid3d", "grid3d_relu_depth", "cnn"])
def test_look_image_writes_a_table_and_a_picture(
    model: str, job: Callable[..., DictConfig], directory: Path, tmp_path: Path
) -> None:
    patch = [] if model == "cnn" else ["model.patch=7"]
    run_job(job(f"data_dir={directory}", *SMALL[:2], *patch, task="mnist", model=model))
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    table, picture = look_at({"what": "image", "ckpt": str(best), "images": "11"})  # more than a batch
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 * (28 * 28 + (0 if model == "cnn" else 2 * 4 * 4))
    assert [row["class"] for row in rows if row["row"] == row["column"] == row["layer"] == "0"] == [*"01234567890"]
    assert sum(float(row["gradient"]) for row in rows if row["layer"] == "0") > 0


def test_gradients_over_an_image_are_those_of_the_chosen_logit(image_job: Callable[..., DictConfig]) -> None:
    run = build(image_job("model.patch=7", "task.objective.read=last_corner"))
    task = run.task.double()
    batch = next(iter(run.data.test_dataloader()))
    seen = see(task, ImageBatch(batch.images[:2].double(), batch.targets[:2]))
    x = batch.images[:1].double()
    logits = task(x)[0]
    step = torch.zeros_like(x)
    step[0, 0, 10, 12] = 1e-6
    chosen = int(logits.argmax())
    slope = (task(x + step)[0, chosen] - task(x - step)[0, chosen]) / 2e-6
    assert seen.pixels[0, 10, 12].item() == pytest.approx(abs(slope.item()), rel=1e-5)
    assert seen.chosen[0] == chosen
    y = task.model(x)[0].detach()  # output of the last layer: h and m of 8 units each
    torch.testing.assert_close(seen.layers[-1].m[0], y[..., 8:].norm(dim=-1), rtol=0, atol=1e-12)
    elsewhere = seen.layers[-1].gradient[0].clone()
    assert elsewhere[0, 0] > 0, "the read-out uses the last corner"
    elsewhere[0, 0] = 0
    assert not elsewhere.any()


def test_look_image_refuses_invalid_requests(
    job: Callable[..., DictConfig], image_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_job(image_job("trainer.max_steps=1", "task.val_every=1", "stages=[fit]", directory="images"))
    for what in ("cells", "gates", "gradients"):
        with pytest.raises(UserError, match=r"is of task=mnist\. Expected a network that reads .* or what=image for"):
            look_at({"what": what, "ckpt": str(tmp_path / "images" / "checkpoints" / "best.ckpt")})
    run_job(job())
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match=r"what=image cannot show .*, which is of task=memorization\. .* task=mnist"):
        look_at({"what": "image", "ckpt": str(best)})
    with pytest.raises(UserError, match="images must be at most 24 with what=image, got 25"):
        look_at({"what": "image", "ckpt": str(best), "images": "25"})
    with pytest.raises(UserError, match="what=image needs one checkpoint"):
        look_at({"what": "image"})
