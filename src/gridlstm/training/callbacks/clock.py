"""Clock that ends training, ``trainer.max_time``."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer


class Clock(Timer):
    """Lightning's timer, changed to end training only after a whole optimizer step.

    Lightning's timer ends it after any batch, also within ``trainer.accumulate_grad_batches``. The partial sum is then
    lost, and a resumed run takes its next step on the rest of it.

    Args:
        duration: "days:hours:minutes:seconds" such as "00:01:30:00", or a ``timedelta``.
    """

    @property
    def state_key(self) -> str:
        return Timer.__qualname__  # key in checkpoints written with Lightning's timer

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer)
