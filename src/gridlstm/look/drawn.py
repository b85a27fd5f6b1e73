"""Images that a network draws pixel by pixel, beside images of the test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gridlstm.data.base import SequenceData
from gridlstm.files import write_csv, write_png
from gridlstm.look.load import test_batches
from gridlstm.tasks.predict_pixels import PredictPixels
from gridlstm.training.callbacks.pixel_pictures import draw_samples


def look(data: SequenceData, task: PredictPixels, images: int, seed: int, out: Path) -> list[Path]:
    """Write drawn.png and drawn.csv of images (N, H, W) that the network draws with this seed; return both paths."""
    drawn = task.sample(images, seed)
    batch: Any = next(test_batches(data))
    paths = [out / "drawn.csv", out / "drawn.png"]
    write_csv(paths[0], _rows(drawn))
    write_png(paths[1], draw_samples(drawn, batch.targets[:images]))
    return paths


def _rows(drawn: Tensor) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [("image", "row", "pixels")]
    for n, image in enumerate(drawn.tolist()):
        rows += [(n, y, "".join(map(str, row))) for y, row in enumerate(image)]
    return rows
