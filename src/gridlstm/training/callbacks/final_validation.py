"""Every training run ends with a validation."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class FinalValidation(Callback):
    """Validates after the last step too.

    Lightning does so when a clock or a callback ends the training, but not when ``max_steps`` does: a run whose steps
    are no multiple of the validation interval would end unjudged, and a short one without any checkpoint.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
