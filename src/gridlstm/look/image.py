"""Pictures of a classifier of images: pixels that decide its choice, and memories of each layer of a grid by place.

Shape legend: B images, H height, W width, (Y, X) rows and columns of places.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gridlstm.cell import HiddenMemory
from gridlstm.data.base import ImageBatch, SequenceData
from gridlstm.files import write_csv, write_png
from gridlstm.grid import Grid
from gridlstm.look.load import test_batches
from gridlstm.tasks.classify_image import ClassifyImage
from gridlstm.training.callbacks.image_pictures import name_of_choice, show_images


class Layer(NamedTuple):
    """Lengths (B, Y, X) of the vectors that leave one layer of a grid along depth."""

    h: Tensor
    m: Tensor
    """0 if depth has no memory."""
    gradient: Tensor
    """Gradient of the chosen logit with respect to h and m together."""


class Seen(NamedTuple):
    """Images with the choices of a network and their gradients."""

    images: Tensor
    """(B, channels, H, W)"""
    targets: list[int]
    chosen: list[int]
    pixels: Tensor
    """(B, H, W) |d logit / d pixel| of the chosen class, summed over the channels."""
    layers: list[Layer]
    """Layers of a model of grids, the lowest first."""


def see(task: ClassifyImage, batch: ImageBatch) -> Seen:
    """Return the classes that the network chooses for a batch, and the gradients of their logits."""
    leaving: list[HiddenMemory] = []

    def keep(layer: nn.Module, given: Any, sides: list[HiddenMemory]) -> None:
        leaving.append(sides[-1])

    hooks = [layer.register_forward_hook(keep) for layer in task.model.modules() if isinstance(layer, Grid)]
    images = batch.images.clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = task(images)
            parts = [x for side in leaving for x in side]
            # An image's logit depends on no other image.
            pixels, *rest = torch.autograd.grad(logits.amax(-1).sum(), [images, *parts], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(parts, rest, strict=True)]
    layers = []
    for n, side in enumerate(leaving):
        of_both = torch.cat(gradients[2 * n : 2 * n + 2], dim=-1)
        lengths = (x.detach().norm(dim=-1).permute(2, 0, 1) for x in (side.h, side.m, of_both))  # (B, Y, X)
        layers.append(Layer(*lengths))
    chosen = logits.argmax(-1).tolist()
    return Seen(batch.images, batch.targets.tolist(), chosen, pixels.abs().sum(1), layers)


def look(data: SequenceData, task: ClassifyImage, images: int, out: Path) -> list[Path]:
    """Write image.png and image.csv of the first images of the test, or of all if it has fewer; return both paths."""
    seen = see(task, _first(data, images))
    paths = [out / "image.csv", out / "image.png"]
    write_csv(paths[0], _rows(seen))
    write_png(paths[1], _draw(seen, task.class_names))
    return paths


def _first(data: SequenceData, number: int) -> ImageBatch:
    """Return the first images of the test in one batch, or all if it has fewer."""
    batches: list[Any] = []
    for batch in test_batches(data):
        batches.append(batch)
        if sum(len(each.targets) for each in batches) >= number:
            break
    return ImageBatch(*(torch.cat(parts)[:number] for parts in zip(*batches, strict=True)))


def _rows(seen: Seen) -> list[Sequence[object]]:
    """Return a row for each pixel, as layer 0 without h and m, and for each place of each layer."""
    rows: list[Sequence[object]] = [("image", "class", "chosen", "layer", "row", "column", "h", "m", "gradient")]
    for n, classes in enumerate(zip(seen.targets, seen.chosen, strict=True)):
        pixels = seen.pixels[n].tolist()
        rows += [(n, *classes, 0, y, x, None, None, g) for y, row in enumerate(pixels) for x, g in enumerate(row)]
        for number, layer in enumerate(seen.layers, start=1):
            maps = [x[n].tolist() for x in layer]
            places = [(y, x) for y in range(len(maps[0])) for x in range(len(maps[0][0]))]
            rows += [(n, *classes, number, y, x, *(each[y][x] for each in maps)) for y, x in places]
    return rows


def _draw(seen: Seen, class_names: Sequence[str]) -> Any:
    """Draw one image per row, the gradient of its pixels, and each layer's memory (or h) and gradient.

    Each map has a scale of its own, from 0 (dark) to its largest value (bright).
    """
    from matplotlib.figure import Figure

    maps = [("|d logit / d pixel|", seen.pixels)]
    for number, layer in enumerate(seen.layers, start=1):
        vector = "m" if layer.m.any() else "h"
        maps.append((f"|{vector}|, layer {number}", layer.m if layer.m.any() else layer.h))
        maps.append((f"|d logit|, layer {number}", layer.gradient))
    count = len(seen.images)
    figure = Figure(figsize=(1.2 * (1 + len(maps)), 1.3 * count + 0.3), layout="constrained")
    every = figure.subplots(count, 1 + len(maps), squeeze=False)
    pairs = zip(seen.targets, seen.chosen, strict=True)
    show_images(every[:, 0], seen.images, [name_of_choice(class_names, *pair) for pair in pairs])
    for row in range(count):
        for axes, (name, values) in zip(every[row, 1:], maps, strict=True):
            _draw_map(axes, values[row])
            if row == 0:
                axes.set_title(name, fontsize=7, pad=3)
        for axes in every[row]:
            axes.set_axis_off()
    return figure


def _draw_map(axes: Any, values: Tensor) -> None:
    """Draw values (rows, columns), or say that all are equal, such as the last gradient below a mean over positions."""
    if values.max() - values.min() > 1e-4 * values.max():
        axes.imshow(values.numpy(), cmap="viridis", vmin=0, interpolation="nearest")
    else:
        axes.set_box_aspect(values.shape[0] / values.shape[1])  # as an image has it
        axes.text(0.5, 0.5, "the same\neverywhere", transform=axes.transAxes, ha="center", va="center", fontsize=7)
