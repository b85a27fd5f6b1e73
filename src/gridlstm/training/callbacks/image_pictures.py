"""Pictures of an image classifier: a training batch, the confusion matrix and the worst mistakes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gridlstm.data.base import ImageBatch
from gridlstm.files import write_png
from gridlstm.tasks.classify_image import ClassifyImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, SHOWN = 12, 96
"""Images in a row of a picture, and largest number of images in a picture."""
LETTER = 0.062
"""Inches of a wide letter in a font of 7 points."""


class ImagePictures(Callback):
    """Draws training_batch.png at the first step, and after the test confusion.png and misclassified.png.

    Runs of other tasks draw nothing.

    Args:
        dir: the run directory.
    """

    def __init__(self, dir: str) -> None:
        self.dir = Path(dir)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, ClassifyImage) and trainer.is_global_zero and batch_idx == trainer.global_step == 0:
            names = [pl_module.class_names[target] for target in batch.targets[:SHOWN].tolist()]
            write_png(self.dir / "training_batch.png", draw_images(batch.images[:SHOWN], names))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, ClassifyImage):
            self._counts = torch.zeros(pl_module.classes, pl_module.classes, dtype=torch.int64)
            self._worst: dict[str, Tensor] = {}

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ImageBatch, *_: Any
    ) -> None:
        if isinstance(pl_module, ClassifyImage):
            self._add(outputs["outputs"].argmax(-1).cpu(), outputs["losses"].float().cpu(), batch)

    def _add(self, found: Tensor, losses: Tensor, batch: ImageBatch) -> None:
        classes, targets = len(self._counts), batch.targets.cpu()
        self._counts += (targets * classes + found).bincount(minlength=classes**2).view(classes, classes)
        # A loss of 0 sorts correct images after all mistakes, and excludes them from the picture.
        losses = losses.masked_fill(found == targets, 0)
        new = {"images": batch.images.float().cpu(), "targets": targets, "found": found, "losses": losses}
        joined = {name: torch.cat([self._worst[name], x]) if self._worst else x for name, x in new.items()}
        order = joined["losses"].argsort(descending=True, stable=True)[:SHOWN]
        self._worst = {name: x[order] for name, x in joined.items()}

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, ClassifyImage) or not self._worst:
            return
        counts = trainer.strategy.reduce(self._counts.to(pl_module.device), reduce_op="sum").cpu()
        worst = {}
        for name, x in self._worst.items():
            # Ranks can gather only tensors of one shape.
            padded = torch.cat([x, x.new_zeros(SHOWN - len(x), *x.shape[1:])]).to(pl_module.device)
            worst[name] = trainer.strategy.all_gather(padded).reshape(-1, *x.shape[1:]).cpu()
        if not trainer.is_global_zero:
            return
        order = worst["losses"].argsort(descending=True, stable=True)[:SHOWN]
        order = order[worst["losses"][order] > 0]
        pairs = zip(worst["targets"][order].tolist(), worst["found"][order].tolist(), strict=True)
        names = [name_of_choice(pl_module.class_names, target, found) for target, found in pairs]
        write_png(self.dir / "confusion.png", draw_confusion(counts, pl_module.class_names))
        if names:
            write_png(self.dir / "misclassified.png", draw_images(worst["images"][order], names))


def name_of_choice(class_names: Sequence[str], target: int, found: int) -> str:
    """Return the title of an image: the name of its class, and the name of the class that was found if it differs."""
    if target == found:
        return class_names[target]
    space = " " if len(class_names[target] + class_names[found]) < 6 else "\n"
    return f"{class_names[target]}{space}as {class_names[found]}"


def draw_images(images: Tensor, names: Sequence[str]) -> "Figure":
    """Draw images (N, channels, height, width) in rows, each below its name; one scale of grey or colour for all."""
    # Imported here: matplotlib takes half a second that no other part of a run needs.
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    lines = [line for name in names for line in name.split("\n")]
    width = max(0.7, LETTER * (1 + max(map(len, lines))))
    height = 0.85 if len(lines) == len(names) else 0.97
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in every:
        axes.set_axis_off()
    show_images(every, images, names)
    return figure


def show_images(every: Iterable["Axes"], images: Tensor, names: Sequence[str]) -> None:
    """Show images (N, channels, height, width) on axes, each image below its name; one scale for all."""
    low, high = images.min(), images.max()
    shown = ((images.float() - low) / (high - low).clamp(min=1e-6)).cpu().movedim(1, -1).numpy()
    for axes, image, name in zip(every, shown, names, strict=False):
        # Three channels are a colour. Of other images, show only the first channel.
        shown_image = image if image.shape[-1] == 3 else image[..., 0]
        # Without "nearest", small pixels are blurred, and the file is three times as large.
        axes.imshow(shown_image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(name, fontsize=7, pad=2)


def draw_confusion(counts: Tensor, names: Sequence[str]) -> "Figure":
    """Draw the number of images of each class (rows) by predicted class (columns); colours show mistakes.

    Args:
        counts: (classes, classes).
        names: of the classes.
    """
    from matplotlib.figure import Figure

    classes, wrong = len(counts), counts.clone().fill_diagonal_(0)
    longest = max(map(len, names))
    more = 0.08 * (longest - 2) if longest > 2 else 0.0  # inches, for names in a font of 10 points
    figure = Figure(figsize=(2 + 0.4 * classes + more, 1.6 + 0.4 * classes + more), layout="constrained")
    axes = figure.subplots()
    most = max(1, int(wrong.max()))
    axes.imshow(wrong.numpy(), cmap="Reds", vmin=0, vmax=most)
    for row in range(classes):
        for column in range(classes):
            if counts[row, column]:
                color = "white" if wrong[row, column] > 2 * most / 3 else "black"  # the largest values are dark red
                text = str(int(counts[row, column]))
                axes.text(column, row, text, color=color, ha="center", va="center", fontsize=7)
    axes.set_xticks(range(classes), names, rotation=90 if more else 0)
    axes.set_yticks(range(classes), names)
    axes.set_xlabel("classified as")
    axes.set_ylabel("class")
    axes.set_title(f"{int(wrong.sum()):,} of {int(counts.sum()):,} wrong")
    return figure
