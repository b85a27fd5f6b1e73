"""Weights averaged over the training: Lightning's callback, with its average tested."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from gridlstm.errors import UserError


class WeightAveraging(EMAWeightAveraging):
    """An exponential moving average of the weights, w' = decay w' + (1 - decay) w, which is validated, kept and tested.

    A checkpoint's ``state_dict`` is the average. Lightning's callback puts the weights that were trained last in its
    place whenever it loads a checkpoint, also for a test that follows the training; here only a training does so.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses an average that would never move.

        Raises:
            UserError: it would be updated every 0 steps.
        """
        if self.update_every_n_steps < 1:
            raise UserError(
                f"callbacks.weight_averaging.update_every_n_steps must be at least 1, got {self.update_every_n_steps}."
            )
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
