"""Weights averaged over the training: Lightning's callback, with its average tested."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn


class WeightAveraging(EMAWeightAveraging):
    """An exponential moving average of the weights, w' = decay w' + (1 - decay) w, which is validated, kept and tested.

    A checkpoint's ``state_dict`` is the average. Lightning's callback puts the weights that were trained last in its
    place whenever it loads a checkpoint, also for a test that follows the training; here only a training does so.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
