"""End every training run with a validation."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class FinalValidation(Callback):
    """Validates after the last step.

    Lightning does so if a clock or a callback ends training, but not if ``max_steps`` does. A run whose steps are not a
    multiple of the validation interval would then lack a final score, and a short run would have no checkpoint.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
