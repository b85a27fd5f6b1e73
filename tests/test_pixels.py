"""Tasks on pixels and on moving images, from the digits to a tested network and its pictures."""

import csv
import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import Precision
from omegaconf import DictConfig, OmegaConf
from tests.conftest import look_at
from tests.image_files import write_digits
from torch import Tensor

from gridlstm.config import choices, compose_model
from gridlstm.data.base import PixelBatch, VideoBatch
from gridlstm.data.binary_images import BinaryImages
from gridlstm.data.digit_scene import DigitScenes
from gridlstm.data.generated import TEST, TRAIN, VAL
from gridlstm.data.image_files import Cifar10, IdxFiles
from gridlstm.data.moving_digits import MovingDigits
from gridlstm.data.placed_digits import PlacedDigits, paste
from gridlstm.data.spec import ImageSpec
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.metrics import MeanOverClasses
from gridlstm.models.base import PixelModel
from gridlstm.models.grid2d_pixels import Grid2dPixels
from gridlstm.models.pixel_lstm import PixelLSTM
from gridlstm.models.pixelcnn import PixelCNN
from gridlstm.tasks.predict_pixels import PredictPixels
from gridlstm.training.build import make_data, make_task, unread_data
from gridlstm.training.callbacks.pixel_pictures import draw_samples
from gridlstm.training.checkpoint import load_content
from gridlstm.training.job import run_job
from gridlstm.training.match import count_flops, count_parameters, match_size
from gridlstm.training.task_models import fits
from gridlstm.training.validate import check

TASKS = {"digit_scene": "grid3d", "mnist_pixels": "grid2d_pixels", "moving_digits": "grid4d"}
RIVALS = {"unet": "digit_scene", "pixelcnn": "mnist_pixels", "pixel_lstm": "mnist_pixels", "convlstm": "moving_digits"}
PICTURES = {"digit_scene": "scenes.png", "mnist_pixels": "samples.png", "moving_digits": "frames.png"}
SMALL = {
    "digit_scene": ["task.data.num_val=4", "task.data.num_test=6", "model.patch=16"],
    "mnist_pixels": ["task.data.num_val=4", "model.num_layers=1"],
    "moving_digits": ["task.data.num_val=4", "task.data.num_test=6", "task.data.frames=3", "model.patch=10"],
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("images"), test=6)


@pytest.fixture
def pixel_job(job: Callable[..., DictConfig], directory: Path) -> Callable[..., DictConfig]:
    """Return a function that composes a toy job of one of the tasks."""

    def make(task: str, *overrides: str, **options: Any) -> DictConfig:
        given = [f"data_dir={directory}", "task.data.batch_size=4", *SMALL[task], *overrides]
        return job(*given, task=task, **{"model": TASKS[task], **options})

    return make


@pytest.fixture(scope="module")
def nodes() -> dict[str, DictConfig]:
    return {name: compose_model(name) for name in choices("model")}


def scenes(directory: Path, **options: int) -> DigitScenes:
    given = {"size": 32, "digit_size": 14, "max_digits": 3, "batch_size": 8, "seed": 3, "num_val": 10, "num_test": 10}
    made = DigitScenes(IdxFiles("MNIST", str(directory)), **{**given, **options})
    made.setup("fit")
    return made


def videos(directory: Path, **options: int) -> MovingDigits:
    sizes = {"size": 20, "digit_size": 14, "num_digits": 2, "frames": 8, "max_speed": 2}
    given = {**sizes, "batch_size": 8, "seed": 3, "num_val": 10, "num_test": 10}
    made = MovingDigits(IdxFiles("MNIST", str(directory)), **{**given, **options})
    made.setup("fit")
    return made


# Digits at random positions.


def test_every_split_has_digits_of_its_own(directory: Path) -> None:
    made = scenes(directory)
    train, test = IdxFiles("MNIST", str(directory)).read()
    small = [F.avg_pool2d(part.images.float() / 255, 2)[:, 0] for part in (train, test)]
    every = torch.arange(1000)
    for split, expected in ((TRAIN, small[0][:50]), (VAL, small[0][50:]), (TEST, small[1])):
        found = made.digits(split, every).images.unique(dim=0)
        assert torch.equal(found, expected.unique(dim=0))


@pytest.mark.parametrize("make", [scenes, videos])
def test_samples_are_a_function_of_seed_split_and_index(make: Callable[[Path], PlacedDigits], directory: Path) -> None:
    made = make(directory)
    whole = made.generate((3, TRAIN), torch.arange(8))
    part = made.generate((3, TRAIN), torch.tensor([5, 2]))
    assert all(torch.equal(x[[5, 2]], y) for x, y in zip(whole, part, strict=True))
    for key in ((4, TRAIN), (3, VAL)):
        assert not torch.equal(made.generate(key, torch.arange(8))[0], whole[0])


def test_ranks_share_the_global_batch(directory: Path) -> None:
    def batch(rank: int, world_size: int) -> PixelBatch:
        made = scenes(directory)
        # The data read only these attributes of a trainer.
        made.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=world_size, training=True, precision_plugin=Precision()
        )
        found: PixelBatch = made.on_after_batch_transfer(list(islice(made.train_dataloader(), 3))[2], 0)
        return found

    whole, halves = batch(0, 1), [batch(rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([half.images for half in halves]), whole.images)


def test_a_scene_is_its_digits_and_the_brightest_wins(directory: Path) -> None:
    made = scenes(directory)
    images, targets = made.generate((3, TRAIN), torch.arange(200))
    assert images.shape == (200, 1, 32, 32)
    assert (images.min(), images.max()) == (-1, 1)
    brightness = (images[:, 0] + 1) / 2
    assert torch.equal(targets > 0, brightness >= made.INK)
    numbers = torch.tensor([len(scene[scene > 0].unique()) for scene in targets])
    assert numbers.max() == 3
    assert set(targets.unique().tolist()) == set(range(11))


def test_scenes_of_one_digit_show_it_whole(directory: Path) -> None:
    made = scenes(directory, max_digits=1)
    known = made.digits(TRAIN, torch.arange(50))
    images, targets = made.generate((3, TRAIN), torch.arange(40))
    sums = ((images[:, 0] + 1) / 2).sum((1, 2))
    for total, scene in zip(sums, targets, strict=True):
        (label,) = scene[scene > 0].unique()
        candidates = known.images[known.targets == label - 1].sum((1, 2))
        assert (candidates - total).abs().min() < 1e-3


def test_pasting_puts_a_digit_where_it_is_told() -> None:
    digits = torch.rand(3, 2, 2)
    canvases = paste(digits, torch.tensor([0, 3, 1]), torch.tensor([0, 3, 2]), 5)
    expected = torch.zeros(3, 5, 5)
    for canvas, digit, (y, x) in zip(expected, digits, ((0, 0), (3, 3), (1, 2)), strict=True):
        canvas[y : y + 2, x : x + 2] = digit
    assert torch.equal(canvases, expected)


def test_digits_move_straight_and_bounce(directory: Path) -> None:
    made = videos(directory, num_digits=1, frames=30)
    frames, targets = made.generate((3, TRAIN), torch.arange(30))
    assert frames.shape == targets.shape == (30, 30, 1, 20, 20)
    assert torch.equal(frames[:, 1:] > 0, targets[:, :-1]), "a target is the next frame"
    for lit in (frames[:, :, 0].amax(3) > 0, frames[:, :, 0].amax(2) > 0):
        first = lit.long().argmax(2)  # the first lit row, or column
        steps = first.diff(dim=1)
        assert steps.abs().max() == made.max_speed
        assert (lit.sum(2) == lit.sum(2)[:, :1]).all(), "no digit is cut at a side"
        assert (steps > 0).any(1).all(), "every digit must change direction"
        assert (steps < 0).any(1).all()


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (scenes, {"digit_size": 13}, r"digit_size must divide 28, got 13: choose one of 1, 2, 4, 7, 14, 28\."),
        (scenes, {"size": 10}, "size must be at least digit_size=14, got 10"),
        (scenes, {"max_digits": 0}, "max_digits must be from 1 to 100, got 0"),
        (scenes, {"max_digits": 10**6}, "max_digits must be from 1 to 100, got 1000000"),
        (videos, {"size": 14}, "size must be above digit_size=14, or digits have no room to move, got 14"),
        (videos, {"num_digits": 0}, "num_digits must be from 1 to 100, got 0"),
        (videos, {"num_digits": 10**6}, "num_digits must be from 1 to 100, got 1000000"),
        (videos, {"frames": 0}, "frames must be at least 1, got 0"),
        (videos, {"max_speed": 0}, "max_speed must be from 1 to 6, the room of a digit on the canvas, got 0"),
        (videos, {"max_speed": 10**20}, "max_speed must be from 1 to 6, the room of a digit on the canvas, got 10"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    make: Callable[..., PlacedDigits], options: dict[str, int], words: str, directory: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        make(directory, **options)


@pytest.mark.parametrize(("train", "test"), [(3, 6), (60, 0)])
def test_too_few_images_for_three_splits_are_refused(train: int, test: int, tmp_path: Path) -> None:
    write_digits(tmp_path, train=train, test=test)
    words = f"MNIST has {train} training images and {test} test images, expected at least 6 and 1: each split has"
    with pytest.raises(UserError, match=words):
        scenes(tmp_path)


def test_coloured_images_are_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="source must have square images of one channel, got 3x32x32 pixels"):
        DigitScenes(Cifar10(str(directory)), 32, 16, 3, 8, 3, 10, 10)
    with pytest.raises(ValueError, match="source must have images of one channel, got 3x32x32 pixels"):
        BinaryImages(Cifar10(str(directory)), 8, 3, 10)


def test_binary_images_are_cut_at_half_the_brightness(directory: Path) -> None:
    made = BinaryImages(IdxFiles("MNIST", str(directory)), batch_size=8, seed=3, num_val=20)
    made.setup("fit")
    batch: PixelBatch = next(iter(made.test_dataloader()))
    grey = IdxFiles("MNIST", str(directory)).read()[1].images[: len(batch.targets)]
    assert torch.equal(batch.targets, (grey[:, 0] >= 128).long())
    assert torch.equal(batch.images[:, 0], 2 * batch.targets.float() - 1)


# The tasks.


@pytest.mark.parametrize("task", TASKS)
def test_a_run_is_trained_resumed_bit_for_bit_evaluated_and_drawn(
    task: str, pixel_job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sampling images of 28 x 28 pixels takes seconds; another test covers it.
    monkeypatch.setattr(PredictPixels, "sample", lambda self, number, seed: torch.zeros(number, 28, 28))
    run_job(pixel_job(task, "trainer.log_every_n_steps=3", directory="whole", picture=True))
    run_job(pixel_job(task, "trainer.log_every_n_steps=3", "trainer.max_steps=2", "stages=[fit]", directory="parts"))
    run_job(pixel_job(task, "trainer.log_every_n_steps=3", "ckpt_path=last", directory="parts"))
    whole, parts = (load_content(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 4
    assert all(torch.equal(x, parts["state_dict"][name]) for name, x in whole["state_dict"].items())
    assert whole["training_sums"] == parts["training_sums"]
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    assert evaluate(best, "test", []) == pytest.approx(result["test"], rel=1e-6)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.png")}
    assert set(pictures) == {PICTURES[task], "learning_curve.png"}
    assert pictures[PICTURES[task]].startswith(b"\x89PNG")


@pytest.mark.parametrize("task", ["mnist_pixels", "moving_digits"])
def test_a_run_from_before_the_option_priority_resumes_and_is_evaluated(
    task: str, pixel_job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PredictPixels, "sample", lambda self, number, seed: torch.zeros(number, 28, 28))
    run_job(pixel_job(task, directory="whole"))
    run_job(pixel_job(task, "trainer.max_steps=2", "stages=[fit]", directory="parts"))
    for name in ("config.yaml", "config_source.yaml"):
        stored = tmp_path / "parts" / name
        config = OmegaConf.load(stored)
        del config.model.priority
        OmegaConf.save(config, stored)
    with pytest.raises(UserError, match=r"model\.priority='depth', in the earlier run None"):
        run_job(pixel_job(task, "ckpt_path=last", "model.priority=depth", directory="parts"))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    evaluate(last, "test", [])
    run_job(pixel_job(task, "ckpt_path=last", directory="parts"))
    whole = load_content(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(x, load_content(last)["state_dict"][name]) for name, x in whole["state_dict"].items())


def test_look_draws_images_of_a_checkpoint(
    pixel_job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(self: PredictPixels, number: int, seed: int) -> torch.Tensor:
        return torch.randint(2, (number, 28, 28), generator=torch.Generator().manual_seed(seed))

    monkeypatch.setattr(PredictPixels, "sample", sample)  # drawing takes 784 passes
    for task in ("mnist_pixels", "moving_digits"):
        run_job(pixel_job(task, "trainer.max_steps=1", "stages=[fit]", directory=task))
    best = tmp_path / "mnist_pixels" / "checkpoints" / "best.ckpt"
    table, picture = look_at({"what": "drawn", "ckpt": str(best), "images": "5", "seed": "3"})
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.open()))
    expected = sample(None, 5, 3)  # type: ignore[arg-type]
    assert len(rows) == 5 * 28
    assert [int(pixel) for row in rows for pixel in row["pixels"]] == expected.flatten().tolist()
    with pytest.raises(UserError, match=r"what=drawn cannot show .*, which is of task=moving_digits\. .*=mnist_pixels"):
        look_at({"what": "drawn", "ckpt": str(tmp_path / "moving_digits" / "checkpoints" / "best.ckpt")})


@pytest.mark.parametrize("number", [1, 5, 16])
def test_a_picture_of_samples_has_all_of_them(number: int) -> None:
    shown = draw_samples(torch.ones(number, 2, 3), torch.zeros(3, 2, 3)).axes[0]
    assert shown.get_title() == f"{number} images drawn by the network"
    assert float(shown.get_images()[0].get_array().sum()) == 6 * number


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_precision_is_a_plain_option(task: str, precision: str, pixel_job: Callable[..., DictConfig]) -> None:
    assert math.isfinite(run_job(pixel_job(task, f"trainer.precision={precision}", "trainer.max_steps=1")))


@pytest.mark.parametrize("task", TASKS)
def test_a_run_does_not_continue_with_other_digits(
    task: str, pixel_job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_job(pixel_job(task, "trainer.max_steps=2", "stages=[fit]"))
    other = write_digits(tmp_path / "other", train=61, test=6)
    with pytest.raises(UserError, match="the images of MNIST are not those that the checkpoint was trained on"):
        run_job(pixel_job(task, "ckpt_path=last", f"data_dir={other}"))


@pytest.mark.parametrize("task", TASKS)
def test_every_model_that_fits_takes_a_step(
    task: str, pixel_job: Callable[..., DictConfig], nodes: dict[str, DictConfig]
) -> None:
    cfg = pixel_job(task)
    data = make_data(cfg)
    fitting = {name: node.copy() for name, node in nodes.items() if fits(node, cfg.task)}
    assert TASKS[task] in fitting
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    for name, cfg.model in fitting.items():
        cfg.model.hidden_size, cfg.model.num_layers = 4, 2
        network = make_task(cfg, data.spec)
        prediction = network.predict(batch, None)
        prediction.losses.sum().backward()
        assert prediction.losses.shape == batch.targets.shape
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters()), name


@pytest.mark.parametrize("task", TASKS)
def test_networks_are_sized_and_counted(task: str, pixel_job: Callable[..., DictConfig]) -> None:
    cfg = pixel_job(task, f"match.parameters_to={TASKS[task]}")
    match_size(cfg)
    spec = unread_data(cfg).expected_spec
    assert spec is not None
    reference = cfg.copy()
    reference.model = compose_model(TASKS[task])
    assert count_parameters(cfg, spec) == pytest.approx(count_parameters(reference, spec), rel=0.05)
    cfg.model.hidden_size = 4
    assert count_flops(cfg, spec) > 0


def test_rivals_fit_their_own_task_alone(nodes: dict[str, DictConfig], pixel_job: Callable[..., DictConfig]) -> None:
    jobs = {task: pixel_job(task) for task in TASKS}
    fitting = {rival: [task for task, cfg in jobs.items() if fits(nodes[rival], cfg.task)] for rival in RIVALS}
    assert fitting == {rival: [task] for rival, task in RIVALS.items()}
    cfg = jobs["mnist_pixels"]
    cfg.model, cfg.run.model = nodes["convlstm"], "convlstm"
    words = "task=mnist_pixels takes a PixelModel, but model=convlstm is not one. Models that fit: grid2d_pixels, "
    with pytest.raises(UserError, match=words):
        check(cfg)


def test_a_map_that_does_not_divide_the_scene_is_refused(pixel_job: Callable[..., DictConfig]) -> None:
    cfg = pixel_job("digit_scene", "task.data.size=30")
    cfg.model = compose_model("cnn")
    cfg.model.hidden_size, cfg.model.num_layers = 4, 4
    with pytest.raises(UserError, match=r"CNN gives a map of 7 x 7 places, which does not divide an image of 30 x 30"):
        make_task(cfg, make_data(cfg).spec)


def test_a_patch_of_logits_lies_where_its_pixels_are(pixel_job: Callable[..., DictConfig]) -> None:
    cfg = pixel_job("digit_scene", "model.patch=8")
    task = make_task(cfg, make_data(cfg).spec)
    y = torch.randn(2, 4, 4, task.model.output_size)
    logits = task.head(y)
    assert logits.shape == (2, 11, 32, 32)
    alone = task.head.linear(y[1, 2, 3]).unflatten(-1, (11, 8, 8))
    torch.testing.assert_close(logits[1, :, 16:24, 24:32], alone)


def test_labels_are_judged_by_all_pixels_of_a_split(pixel_job: Callable[..., DictConfig]) -> None:
    cfg = pixel_job("digit_scene")
    data = make_data(cfg)
    task = make_task(cfg, data.spec)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    metrics = dict(task.make_metrics().items())
    found, targets = [], []
    for batch in batches:
        # Pretend that a network labels each 3 as an 8, and each pixel of the first column as a 0.
        labels = batch.targets.clone()
        labels[labels == 4] = 9
        labels[:, :, 0] = 1
        prediction = task.predict(batch, None)._replace(outputs=F.one_hot(labels, 11).movedim(-1, 1).float())
        task.update_metrics(metrics, batch, prediction)  # type: ignore[arg-type]  # a ModuleDict is not typed
        found.append(labels)
        targets.append(batch.targets)
    a, b = torch.cat(found), torch.cat(targets)
    union = [((a == c) | (b == c)).sum() for c in range(11)]
    expected = [((a == c) & (b == c)).sum() / n for c, n in enumerate(union) if n]
    assert float(metrics["iou"].compute()) == pytest.approx(float(sum(expected)) / len(expected))
    assert float(metrics["accuracy"].compute()) == pytest.approx(float((a == b).double().mean()))
    assert float(metrics["accuracy_foreground"].compute()) == pytest.approx(float((a == b)[b > 0].double().mean()))


def test_classes_that_never_occur_do_not_count() -> None:
    metric = MeanOverClasses(3)
    metric.update(torch.tensor([1, 0, 0]), torch.tensor([2, 4, 0]))
    metric.update(torch.tensor([1, 1, 0]), torch.tensor([2, 4, 0]))
    assert float(metric.half().compute()) == pytest.approx((2 / 4 + 1 / 8) / 2)


def test_pixels_are_counted_in_bits_and_images_in_nats(pixel_job: Callable[..., DictConfig]) -> None:
    cfg = pixel_job("mnist_pixels")
    data = make_data(cfg)
    task = make_task(cfg, data.spec)
    metrics = dict(task.make_metrics().items())
    batch = next(iter(data.test_dataloader()))
    prediction = task.predict(batch, None)
    task.update_metrics(metrics, batch, prediction)  # type: ignore[arg-type]  # a ModuleDict is not typed
    logits = task(batch.images)
    p = torch.where(batch.targets > 0, logits.sigmoid(), (-logits).sigmoid())
    nats = -float(p.detach().double().log().sum()) / len(p)
    assert float(metrics["nats"].compute()) == pytest.approx(nats, rel=1e-5)
    assert float(metrics["bpd"].compute()) == pytest.approx(nats / 784 / math.log(2), rel=1e-5)


@pytest.mark.parametrize("make", [Grid2dPixels, PixelCNN, PixelLSTM])
def test_samples_are_drawn_with_the_probabilities_of_the_model(make: Callable[..., PixelModel]) -> None:
    """Each drawn pixel is 1 if its uniform random number is below its probability given the drawn image."""
    torch.manual_seed(0)
    model, spec = make(1, 6, 7, 4, 2), ImageSpec(1, 6, 7, classes=2)
    task = PredictPixels(model, spec, torch.optim.Adam).double().eval()
    with torch.no_grad():
        noise = torch.randn(9, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        task.head.weight.mul_(4 / task(noise).std())  # probabilities far from one half
        task.head.bias.sub_(task(noise).mean())
        drawn = task.sample(3, seed=5)
        probability = task(2 * drawn[:, None].double() - 1).sigmoid()
    uniform = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn, (uniform < probability).long())
    assert 0 < drawn.double().mean() < 1


def test_pixels_of_several_values_are_refused() -> None:
    with pytest.raises(ValueError, match="expected pixels of 1 channel and 2 values, got 1 and 11"):
        PredictPixels(Grid2dPixels(1, 6, 7, 4, 2), ImageSpec(1, 6, 7, classes=11), torch.optim.Adam)


def test_frames_are_judged_by_what_is_lit(pixel_job: Callable[..., DictConfig]) -> None:
    cfg = pixel_job("moving_digits")
    data = make_data(cfg)
    task = make_task(cfg, data.spec)
    batch: VideoBatch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    metrics = dict(task.make_metrics().items())
    copied: Tensor = batch.frames  # predicts that nothing moves
    task.update_metrics(metrics, batch, task.predict(batch, None)._replace(outputs=copied))  # type: ignore[arg-type]
    lit = copied > 0
    assert float(metrics["accuracy"].compute()) == pytest.approx(float((lit == batch.targets).double().mean()))
    both, either = (lit & batch.targets).sum(), (lit | batch.targets).sum()
    assert float(metrics["iou"].compute()) == pytest.approx(float(both / either))
