"""Train to a criterion: the paper's algorithmic tasks end when all of 100 unseen problems are solved (section 4)."""

import logging
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from gridlstm.errors import UserError
from gridlstm.tasks.base import Task

log = logging.getLogger(__name__)


class Criterion(Callback):
    """Ends training at the first validation with a metric of at least a given value.

    The metric is exact over all ranks, so all stop at the same step. The result is stored in the checkpoint: a solved
    run does not continue training when it resumes. A changed criterion is evaluated again.

    Args:
        metric: a metric to maximize, such as "val/sequence_accuracy": the share of validation problems (100 in the
            paper) whose whole answer is right.
        at_least: value that ends training, above 0 and at most 1.

    Raises:
        UserError: from the constructor, if ``at_least`` is out of range; in training, see ``on_fit_start``.
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
        """Refuse metrics that the task lacks or minimizes, and partial validations.

        Raises:
            UserError: the metric or the validation is unsuitable; the message lists suitable metrics.
        """
        names = [f"val/{name}" for name in cast(Task, pl_module).metric_names if "accuracy" in name]
        if self.metric not in names:
            expected = f"must be one of {', '.join(names)}" if names else "needs an accuracy, which this task lacks"
            raise UserError(f"callbacks.criterion.metric {expected}, got {self.metric!r}.")
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # missing from its annotations
            return
        if trainer.overfit_batches:  # type: ignore[attr-defined]  # missing from its annotations
            raise UserError(
                "the criterion needs unseen problems, but trainer.overfit_batches leaves none. Use "
                "callbacks.criterion=null, or debug=overfit, which sets it."
            )
        if (limit := trainer.limit_val_batches) not in (None, 1.0) or type(limit) is int:
            raise UserError(
                f"the criterion needs all problems of a validation, but trainer.limit_val_batches={limit} omits some. "
                f"Set their number with task.data.num_val."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.samples_to_solve is not None:
            log.info("already solved after %s samples: no training is left", f"{self.samples_to_solve:,}")
            trainer.should_stop = True
        elif trainer.global_step and not self._from_the_start:
            seen = f"{cast(Task, pl_module).samples_seen:,}"
            log.warning("the criterion has changed: it is unknown whether it was met within the first %s samples", seen)

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
    """Return {"samples_to_solve": their number, or None if unsolved}, or {} for a training without a criterion."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # missing from its annotations
    criteria = [callback for callback in callbacks if isinstance(callback, Criterion)]
    return {"samples_to_solve": criteria[0].samples_to_solve} if criteria else {}
