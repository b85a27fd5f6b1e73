"""Training to a criterion: the paper's algorithmic tasks end when 100 unseen problems are all right (section 4)."""

import logging
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from gridlstm.errors import UserError
from gridlstm.tasks.base import Task

log = logging.getLogger(__name__)


class Criterion(Callback):
    """Ends the training at the first validation in which a metric reaches a value.

    The metric is exact over all ranks, so all of them stop at the same step. What was found is kept in the
    checkpoint: a solved run that is resumed does not train on. Another criterion asks anew.

    Args:
        metric: larger is better, such as "val/sequence_accuracy": the share of validation problems, of which the
            paper takes 100, whose whole answer is right.
        at_least: the value that ends the training, above 0 and at most 1.

    Raises:
        UserError: when constructed, ``at_least`` is another number; in training, see ``on_fit_start``.
    """

    def __init__(self, metric: str, at_least: float = 1.0) -> None:
        if not 0 < at_least <= 1:
            raise UserError(f"callbacks.criterion.at_least must be above 0 and at most 1, got {at_least}.")
        self.metric = metric
        self.at_least = at_least
        self.samples_to_solve: int | None = None
        """Training samples seen when the criterion was met; None before."""
        self._from_the_start = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(metric=self.metric, at_least=self.at_least)

    def state_dict(self) -> dict[str, Any]:
        return {"samples_to_solve": self.samples_to_solve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples_to_solve = state_dict["samples_to_solve"]
        self._from_the_start = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses a metric that the task does not measure, or of which less is better, and a part of the validation.

        Raises:
            UserError: with the names of those that it does.
        """
        names = [f"val/{name}" for name in cast(Task, pl_module).metric_names if "accuracy" in name]
        if self.metric not in names:
            expected = (
                f"must be one of {', '.join(names)}" if names else "needs an accuracy, which this task has none of"
            )
            raise UserError(f"callbacks.criterion.metric {expected}, got {self.metric!r}.")
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # missing from its annotations
            return
        if trainer.overfit_batches:  # type: ignore[attr-defined]  # missing from its annotations
            raise UserError(
                "the criterion is about unseen problems, of which trainer.overfit_batches leaves none: give "
                "callbacks.criterion=null, or debug=overfit, which does so."
            )
        if (limit := trainer.limit_val_batches) not in (None, 1.0) or type(limit) is int:
            raise UserError(
                f"the criterion is about all problems of a validation, and trainer.limit_val_batches={limit} leaves "
                f"some out: give their number with task.data.num_val."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.samples_to_solve is not None:
            log.info("solved already, after %s samples: nothing is left to train", f"{self.samples_to_solve:,}")
            trainer.should_stop = True
        elif trainer.global_step and not self._from_the_start:
            seen = f"{cast(Task, pl_module).samples_seen:,}"
            log.warning(
                "this criterion is new to the run: whether it was met within the first %s samples is not known", seen
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.samples_to_solve is not None:
            return
        if float(trainer.callback_metrics[self.metric]) < self.at_least:
            return
        samples = self.samples_to_solve = cast(Task, pl_module).samples_seen
        trainer.should_stop = True
        log.info("solved: %s is at least %g after %s samples", self.metric, self.at_least, f"{samples:,}")
        for logger in trainer.loggers:
            logger.log_metrics({"samples_to_solve": samples, "samples": samples}, step=trainer.global_step)


def solved(trainer: L.Trainer) -> dict[str, int | None]:
    """{"samples_to_solve": their number, None where it was not solved}, or {} for a training without a criterion."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # missing from its annotations
    criteria = [callback for callback in callbacks if isinstance(callback, Criterion)]
    return {"samples_to_solve": criteria[0].samples_to_solve} if criteria else {}
