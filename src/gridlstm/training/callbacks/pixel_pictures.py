"""Pictures of tasks on pixels: labelled scenes, drawn images and predicted frames.

Shape legend: N pictures, T frames, (H, W) rows and columns of pixels.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gridlstm.files import write_png
from gridlstm.tasks.label_pixels import LabelPixels
from gridlstm.tasks.predict_frames import PredictFrames
from gridlstm.tasks.predict_pixels import PredictPixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCENES, IMAGES, VIDEOS = 8, 16, 3
"""Number of scenes, drawn images and videos of a picture."""
SEED = 0
"""Seed of the drawn images."""


class PixelPictures(Callback):
    """Draws scenes.png, samples.png or frames.png after the test, from its first batch.

    Runs of other tasks draw nothing.

    Args:
        dir: the run directory.
    """

    def __init__(self, dir: str) -> None:
        self.dir = Path(dir)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 0 and trainer.is_global_zero:
            self._draw(pl_module, batch, outputs["outputs"])

    def _draw(self, task: L.LightningModule, batch: Any, outputs: Tensor) -> None:
        if isinstance(task, LabelPixels):
            images, targets, found = (
                x[:SCENES].cpu() for x in (batch.images[:, 0].float(), batch.targets, outputs.argmax(1))
            )
            write_png(self.dir / "scenes.png", draw_scenes(images, targets, found, task.classes))
        elif isinstance(task, PredictPixels):
            drawn, images = task.sample(IMAGES, SEED).cpu(), batch.targets[:IMAGES].cpu()
            write_png(self.dir / "samples.png", draw_samples(drawn, images))
        elif isinstance(task, PredictFrames):
            videos = (x[:VIDEOS, :, 0].float().cpu() for x in (batch.targets, outputs.sigmoid()))
            write_png(self.dir / "frames.png", draw_frames(*videos))


def draw_scenes(images: Tensor, targets: Tensor, found: Tensor, classes: int) -> "Figure":
    """Draw scenes (N, H, W) over the class of each pixel and the class that was found."""
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = ["black", *(f"C{digit}" for digit in range(classes - 1))]
    look = {"cmap": ListedColormap(colours), "norm": BoundaryNorm(range(classes + 1), classes)}
    figure = Figure(figsize=(1.1 * len(images) + 0.5, 4.2), layout="constrained")
    rows = figure.subplots(3, len(images), squeeze=False)
    figure.suptitle("Scenes of the test, and the digit of every pixel")
    for axes, image in zip(rows[0], images, strict=True):
        axes.imshow(image.numpy(), cmap="gray", vmin=-1, vmax=1)
    for row, maps in zip(rows[1:], (targets, found), strict=True):
        for axes, labels in zip(row, maps, strict=True):
            axes.imshow(labels.numpy(), interpolation="nearest", **look)
    _name_rows(rows, ("scene", "truth", "found"))
    digits = [Patch(color=colour, label=str(digit)) for digit, colour in enumerate(colours[1:])]
    figure.legend(handles=digits, loc="outside lower center", ncols=len(digits), frameon=False)
    return figure


def draw_samples(samples: Tensor, images: Tensor) -> "Figure":
    """Draw samples (N, H, W) of 0 and 1 beside images of the test."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    for axes, shown, title in zip(
        figure.subplots(1, 2), (samples, images), ("drawn by the network", "of the test"), strict=True
    ):
        side = math.ceil(math.sqrt(len(shown)))
        filled = F.pad(shown, (0, 0, 0, 0, 0, -len(shown) % side))
        rows = [torch.cat(list(row), dim=1) for row in filled.unflatten(0, (-1, side))]
        axes.imshow(torch.cat(rows).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{len(shown)} images {title}")
        _bare(axes)
    return figure


def draw_frames(targets: Tensor, found: Tensor) -> "Figure":
    """Draw the frames (N, T, H, W) that follow each frame, over the predicted probability that each pixel is lit."""
    from matplotlib.figure import Figure

    number, steps = targets.shape[:2]
    figure = Figure(figsize=(0.95 * steps + 0.7, 1.9 * number + 0.5), layout="constrained")
    figure.suptitle("Next frames, and the probability that a pixel is lit given all earlier frames")
    rows = figure.subplots(2 * number, steps, squeeze=False)
    for row, video in zip(rows, torch.stack([targets, found], dim=1).flatten(0, 1), strict=True):
        for axes, frame in zip(row, video, strict=True):
            axes.imshow(frame.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for step, axes in enumerate(rows[0]):
        axes.set_title(f"frame {step + 2}", fontsize=9)
    _name_rows(rows, ("truth", "predicted") * number)
    return figure


def _name_rows(rows: Any, names: tuple[str, ...]) -> None:
    for row, name in zip(rows, names, strict=True):
        row[0].set_ylabel(name)
        for axes in row:
            _bare(axes)


def _bare(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
