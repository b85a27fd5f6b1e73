"""Write progress.json, which shows the progress of a run to other processes."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gridlstm.files import write_text
from gridlstm.training.callbacks.best_checkpoint import best_checkpoint
from gridlstm.training.callbacks.progress import last_step, seconds_left


class ProgressFile(Callback):
    """Writes ``step``, ``last_step``, ``seconds`` of this leg, ``seconds_left`` and ``best``.

    ``best`` is the best value so far of the monitored metric. Unknown values are null.

    Args:
        dir: run directory.
        every_seconds: seconds between writes.
    """

    def __init__(self, dir: str, every_seconds: float) -> None:
        self.dir = Path(dir)
        self.every_seconds = every_seconds

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = trainer.global_step
        self._start = time.monotonic()
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._written >= self.every_seconds:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        best = best_checkpoint(trainer)
        content = {
            "step": trainer.global_step,
            "last_step": last_step(trainer),
            "seconds": round(self._written - self._start, 3),
            "seconds_left": seconds_left(trainer, self._first_step, self._written - self._start),
            "best": best[0] if best else None,
        }
        write_text(self.dir / "progress.json", json.dumps(content) + "\n")
