"""Measure the loss by position after a reset, which shows if a language model uses symbols read long ago."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gridlstm.data.base import Batch
from gridlstm.files import write_csv, write_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS_PER_DECADE = 12


class PositionLoss(Callback):
    """Sums the nats of an evaluation by position; position 1 is predicted from the first symbol after a reset.

    The callback works in a single process. The sums cover the last ``validate`` or ``test``.
    """

    def __init__(self) -> None:
        self.nats = torch.zeros(0, dtype=torch.float64)
        """(positions,) sum over all streams"""
        self.symbols = torch.zeros(0, dtype=torch.int64)
        """(positions,) number of streams that are at least this long"""
        self._read = torch.zeros(0, dtype=torch.int64)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._add(outputs["losses"], batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._add(outputs["losses"], batch)

    def _add(self, nats: Tensor, batch: Batch) -> None:
        rows, steps = nats.shape
        reset = batch.reset.cpu()
        read = self._read if len(self._read) == rows else torch.zeros(rows, dtype=torch.int64)
        read = torch.where(reset, 0, read)
        mask = batch.loss_mask.cpu()
        places = (read[:, None] + torch.arange(steps))[mask]
        self._read = read + steps
        length = max(len(self.nats), int(places.max()) + 1 if len(places) else 0)
        self.nats = _longer(self.nats, length).index_add(0, places, nats.cpu().double()[mask])
        self.symbols = _longer(self.symbols, length) + places.bincount(minlength=length)

    def write(self, stem: Path) -> list[Path]:
        """Write ``<stem>.csv`` with every position, and ``<stem>.png`` with means over logarithmic bins.

        Returns:
            Both paths.
        """
        table, picture = (stem.with_name(stem.name + suffix) for suffix in (".csv", ".png"))
        rows: list[tuple[Any, ...]] = [("position", "symbols", "nats", "bits")]
        for place, (nats, symbols) in enumerate(zip(self.nats.tolist(), self.symbols.tolist(), strict=True), start=1):
            rows.append((place, symbols, nats / symbols, nats / symbols / math.log(2)))
        write_csv(table, rows)
        write_png(picture, self._draw())
        return [table, picture]

    def _draw(self) -> "Figure":
        # Imported here: matplotlib takes half a second, and only this part of an evaluation needs it.
        from matplotlib.figure import Figure

        position = torch.arange(1, len(self.nats) + 1, dtype=torch.float64)
        # Shifted by 0.5 so that the last position, 10,000, does not get a bin of its own.
        order = ((position - 0.5).log10().clamp(min=0) * BINS_PER_DECADE).long()
        sums = [torch.zeros(int(order.max()) + 1, dtype=torch.float64).index_add(0, order, x) for x in (
            position * self.symbols, self.nats, self.symbols.double()
        )]  # fmt: skip
        places, nats, symbols = (x[sums[2] > 0] for x in sums)
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot((places / symbols).tolist(), (nats / symbols / math.log(2)).tolist(), marker=".")
        axes.set_xscale("log")
        axes.set_xlabel("symbols read since the state's reset")
        axes.set_ylabel("loss, bits per symbol")
        axes.grid(alpha=0.3)
        return figure


def _longer(values: Tensor, length: int) -> Tensor:
    return torch.cat([values, values.new_zeros(length - len(values))])
