"""Write the rows of the training log."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from gridlstm.metrics import RatioOfSums


class LogRows:
    """Rows of training metrics, one every ``trainer.log_every_n_steps`` steps, each the mean since the previous row.

    Args:
        task: task whose loggers write the rows.
        metrics: training metrics by name.
    """

    def __init__(self, task: L.LightningModule, metrics: Mapping[str, RatioOfSums]) -> None:
        self._task = task
        self._metrics = metrics
        self.latest: dict[str, float] = {}
        """Training metrics of the last row."""
        self.last_step = 0
        """Step of the last row."""

    @property
    def due(self) -> bool:
        """True if this step ends with a row that has not been written."""
        every: int = self._task.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set, but not annotated
        # With accumulated gradients, several batches belong to one step; its row is written after the last of them.
        return self._task.global_step % every == 0 and self._task.global_step != self.last_step

    @property
    def begun(self) -> bool:
        """True if a batch was trained on since the last row."""
        return self._metrics["loss"].update_called

    def write_training(self, samples: int) -> None:
        """Write the row of this step if it is due, and start the next."""
        if not self.due:
            return
        self.last_step = self._task.global_step
        self.latest = {f"train/{name}": float(metric.compute()) for name, metric in self._metrics.items()}
        for metric in self._metrics.values():
            metric.reset()
        rate = self._task.trainer.optimizers[0].param_groups[0]["lr"]
        self.write(self.latest | {"lr": rate, "samples": samples}, self.last_step)

    def write(self, values: dict[str, float], step: int) -> None:
        """Write one row to every logger; Lightning's own method would omit the samples seen."""
        for logger in self._task.loggers:
            logger.log_metrics(values, step=step)

    def save(self) -> dict[str, list[Any]]:
        """Return the sums of the unfinished row over all ranks. All ranks call this."""
        reduce = self._task.trainer.strategy.reduce  # in place
        return {
            name: [reduce(part.clone(), reduce_op="sum").tolist() for part in (metric.total, metric.count)]
            for name, metric in self._metrics.items()
        }

    def restore(self, sums: Mapping[str, list[Any]], step: int) -> None:
        """Continue the row that ``save`` returned, after the row of ``step``."""
        for name, (total, count) in sums.items():
            if self._task.global_rank == 0:
                metric = self._metrics[name]
                metric.update(metric.total.new_tensor(total), metric.count.new_tensor(count))
        self.last_step = step
