"""Draw learning_curve.png: loss and monitored metric against samples, from metrics.csv."""

import csv
import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from gridlstm.files import write_png

log = logging.getLogger(__name__)


class LearningCurve(Callback):
    """Draws the curve when training ends, even by an error or an interruption.

    Args:
        dir: run directory, which holds metrics.csv and receives learning_curve.png.
        monitor: metric that chooses the best checkpoint, such as "val/bpc".
    """

    def __init__(self, dir: str, monitor: str) -> None:
        self.dir = Path(dir)
        self.monitor = monitor

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        for logger in trainer.loggers:
            logger.save()
        if (self.dir / "metrics.csv").exists():  # missing after an early failure
            self.on_train_end(trainer, pl_module)

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.save()
        table = self.dir / "metrics.csv"
        if not table.exists():
            log.warning("no learning curve: %s does not exist. Use the csv logger: logger=csv", table)
            return
        unit = trainer.datamodule.spec.unit.removesuffix("s")  # type: ignore[attr-defined]  # missing from its annotations
        draw(table, self.monitor.split("/", 1)[1], self.dir / "learning_curve.png", unit)


def draw(table: Path, metric: str, picture: Path, unit: str) -> None:
    """Draw loss and ``metric`` of training and validation against samples seen.

    Args:
        table: a metrics.csv with columns samples, train/… and val/….
        metric: name without its prefix, such as "bpc".
        picture: PNG to write.
        unit: name of one symbol, such as "byte".
    """
    # Imported here: matplotlib takes half a second, and only this part of a run needs it.
    from matplotlib.figure import Figure

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names, bits = list(dict.fromkeys(["loss", metric])), f"bits per {unit}"
    figure = Figure(figsize=(5 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, style in (("train", {"alpha": 0.6}), ("val", {"marker": ".", "linewidth": 1.5})):
            points = [
                (float(row["samples"]), float(row[column])) for row in rows if row.get(column := f"{split}/{name}")
            ]
            if points:
                axes.plot(*zip(*points, strict=True), label=split, **style)
        axes.set_xlabel("training samples")
        axes.set_ylabel({"loss": "loss, nats", "bpc": bits, "bpw": bits}.get(name, name))
        axes.grid(alpha=0.3)
        axes.legend()
    write_png(picture, figure)
