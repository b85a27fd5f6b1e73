"""The clock that ends a training, ``trainer.max_time``."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer


class Clock(Timer):
    """Lightning's timer, which here lets a training end after a whole step alone.

    Its own ends it after any batch, so also within ``trainer.accumulate_grad_batches``: what had been summed was lost,
    and a run that went on took its next step on a part of a sum.

    Args:
        duration: days, hours, minutes and seconds, "00:01:30:00"; or a ``timedelta``.
    """

    @property
    def state_key(self) -> str:
        return Timer.__qualname__  # as in the checkpoints of those that had Lightning's

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer)
