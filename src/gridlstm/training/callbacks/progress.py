"""Show the progress of a run: a bar on a terminal, and log lines everywhere."""

import datetime
import logging
import sys
import time
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, Timer
from tqdm import tqdm

from gridlstm.tasks.base import Task

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """Shows step, percentage, latest metrics, symbols per second and the estimated time to the end of training.

    Lightning's own bar has no total for an endless stream, so it shows no ETA.

    Args:
        every_seconds: seconds between log lines. The bar on a terminal moves continuously.
    """

    def __init__(self, every_seconds: float) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self._bar: Any = None
        self._enabled = True
        self._evaluating = 0.0  # seconds spent in validations during this fit

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = trainer.global_step
        self._start = self._line_at = time.monotonic()
        self._evaluating = 0.0
        if self._enabled and trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=last_step(trainer), initial=trainer.global_step, unit="step", leave=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(self._figures(trainer, pl_module), refresh=False)
            self._bar.update(0)
        if self._enabled and now - self._line_at >= self.every_seconds:
            self._line_at = now
            self._say(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_start = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._evaluating += time.monotonic() - self._validation_start
            self._line_at = time.monotonic()
            self._say(trainer, pl_module, prefix="val/")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        now = time.monotonic()
        if batch_idx == 0:
            self._line_at = now
        elif self._enabled and now - self._line_at >= self.every_seconds:
            self._line_at = now
            total = trainer.num_test_batches[dataloader_idx]
            log.info("test: batch %d%s", batch_idx + 1, f" of {total}" if total != float("inf") else "")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def units_per_second(self, trainer: L.Trainer) -> float:
        """Return the training throughput so far over all ranks, without validations."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        seconds = time.monotonic() - self._start - self._evaluating
        steps = trainer.global_step - self._first_step
        units = steps * trainer.accumulate_grad_batches * data.batch_size * (data.spec.length or 1)
        return float(units / max(seconds, 1e-9))

    def _say(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str = "") -> None:
        last = last_step(trainer)
        share = f"/{last} ({100 * trainer.global_step // last} %)" if last else ""
        line = f"step {trainer.global_step}{share} | {self._figures(trainer, pl_module, prefix)}"
        if self._bar is not None:
            self._bar.clear()
        log.info(line)
        if self._bar is not None:
            self._bar.refresh()

    def _figures(self, trainer: L.Trainer, pl_module: L.LightningModule, prefix: str = "") -> str:
        task = cast(Task, pl_module)
        values = task.logged(prefix) if prefix else task.rows.latest
        parts = [f"{name} {value:.4g}" for name, value in values.items()]
        rate, unit = self.units_per_second(trainer), trainer.datamodule.spec.unit  # type: ignore[attr-defined]
        return " | ".join([*parts, f"{_compact(rate)} {unit}/s", f"ETA {self._eta(trainer)}"])

    def _eta(self, trainer: L.Trainer) -> str:
        left = seconds_left(trainer, self._first_step, time.monotonic() - self._start)
        return "unknown" if left is None else str(datetime.timedelta(seconds=round(left)))


def last_step(trainer: L.Trainer) -> int | None:
    """Return the limit on steps, or None; a clock may end training earlier."""
    return trainer.max_steps if trainer.max_steps > 0 else None


def seconds_left(trainer: L.Trainer, first_step: int, seconds: float) -> float | None:
    """Return the estimated time to the end of training, by steps or clocks, whichever is first; None while unknown.

    Args:
        trainer: trainer of the run.
        first_step: first step of this process, above 0 in a resumed run.
        seconds: time since that step.
    """
    left: list[float] = []
    done = trainer.global_step - first_step
    if (last := last_step(trainer)) and done:
        left.append(seconds / done * (last - trainer.global_step))
    left += [remaining for timer in _timers(trainer) if (remaining := timer.time_remaining()) is not None]
    return max(min(left), 0.0) if left else None


def _timers(trainer: L.Trainer) -> list[Timer]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Timer)]


def _compact(number: float) -> str:
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
