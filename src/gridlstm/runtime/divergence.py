"""A run that diverges ends at once, and keeps the last checkpoint from before."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gridlstm.errors import UserError
from gridlstm.tasks.base import SequenceTask


class StopOnDivergence(Callback):
    """Ends training where a loss is no number, or the training loss has grown to a multiple of the first batch's.

    The training loss is looked at where it is logged, as the mean since the row before; the validation loss before a
    checkpoint is written, so that no checkpoint holds weights that are no numbers.

    Args:
        factor: the multiple, 3 in char-rnn; None to look for numbers alone.

    Raises:
        UserError: when constructed, the factor is not above 1; in training, the loss diverged.
    """

    def __init__(self, factor: float | None = 3.0) -> None:
        if factor is not None and not factor > 1:
            raise UserError(f"callbacks.divergence.factor must be null or above 1, got {factor}.")
        self.factor = factor
        self.first: float | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SequenceTask)
        if self.first is None:
            self.first = pl_module.training_loss()
        if not pl_module.row_is_due():
            return
        loss = pl_module.training_loss()
        self._check_number("training", loss, trainer)
        if self.factor is not None and loss > self.factor * self.first:
            raise _diverged(f"the training loss grew from {self.first:.4g} to {loss:.4g}", trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and "val/loss" in trainer.callback_metrics:
            self._check_number("validation", float(trainer.callback_metrics["val/loss"]), trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first = state_dict["first"]

    def _check_number(self, stage: str, loss: float, trainer: L.Trainer) -> None:
        if not math.isfinite(loss):
            raise _diverged(f"the {stage} loss became {loss}", trainer)


def _diverged(what: str, trainer: L.Trainer) -> UserError:
    return UserError(
        f"{what} by step {trainer.global_step}: the run was ended, and its last checkpoint is from before. Lower the "
        f"learning rate (optimizer.lr) or clip the gradients (trainer.gradient_clip_val=1)."
    )
