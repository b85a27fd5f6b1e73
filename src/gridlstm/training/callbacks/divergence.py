"""End a diverging run at once, and keep the last checkpoint before the divergence."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from gridlstm.errors import UserError
from gridlstm.tasks.base import Task

_ROWS = 3
"""Number of consecutive log rows. Adagrad's first steps and rare large steps exceed the limit for fewer rows."""


class StopOnDivergence(Callback):
    """Ends training if a loss is not finite, or if the training loss stays above a multiple of its first value.

    The first value is the loss of the first batch, but at least the loss of uniform guessing, because weights from
    another run (``init_from``) may start below it.

    The training loss is the mean since the last log row. It must be too high in three consecutive rows, or just before
    a validation whose loss is also too high, so that a diverged network writes no checkpoint.

    Args:
        factor: the multiple, 3 in char-rnn, which ends at the first batch above it; None checks for finite losses only.

    Raises:
        UserError: from the constructor, if the factor is not above 1; in training, if the loss diverged.
    """

    def __init__(self, factor: float | None = 3.0) -> None:
        if factor is not None and not factor > 1:
            raise UserError(f"callbacks.divergence.factor must be null or above 1, got {factor}.")
        self.factor = factor
        self.first: float | None = None
        self._too_high = 0
        self._loss = math.nan

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Task)
        if self.first is None:
            self.first = max(pl_module.training_loss(), pl_module.guessing_loss)
        if not pl_module.rows.due:
            return
        self._loss = pl_module.training_loss()
        self._check_number("training", self._loss, trainer)
        self._too_high = self._too_high + 1 if self._above(self._loss) else 0
        if self._too_high == _ROWS:
            raise self._grown(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or "val/loss" not in trainer.callback_metrics:
            return
        assert isinstance(pl_module, Task)
        loss = float(trainer.callback_metrics["val/loss"])
        self._check_number("validation", loss, trainer)
        if pl_module.rows.begun:
            self._loss = pl_module.training_loss()
            self._check_number("training", self._loss, trainer)  # averaged weights may not show the divergence yet
        if self._above(loss) and (self._too_high or self._above(self._loss)):
            raise self._grown(trainer)

    def _above(self, loss: float) -> bool:
        return self.factor is not None and self.first is not None and loss > self.factor * self.first

    def _grown(self, trainer: L.Trainer) -> UserError:
        return _diverged(f"the training loss grew from {self.first:.4g} to {self._loss:.4g}", trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "too_high": self._too_high}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first = state_dict["first"]
        self._too_high = state_dict.get("too_high", 0)

    def _check_number(self, stage: str, loss: float, trainer: L.Trainer) -> None:
        if not math.isfinite(loss):
            raise _diverged(f"the {stage} loss became {loss}", trainer)


def _diverged(what: str, trainer: L.Trainer) -> UserError:
    written = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
    before = "and its last checkpoint was written earlier" if written else "before it had a checkpoint"
    clip = "" if trainer.gradient_clip_val else " or clip the gradients (trainer.gradient_clip_val=1)"
    advice = f"Lower the learning rate (optimizer.lr){clip}."
    return UserError(f"{what} by step {trainer.global_step}: the run was ended, {before}. {advice}")
