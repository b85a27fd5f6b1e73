"""Ctrl-C, SIGTERM and SIGHUP end a run after the step at hand, with a checkpoint of that step."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from gridlstm.tasks.base import Task
from gridlstm.training.intact import LAST

log = logging.getLogger(__name__)


class SaveOnInterrupt(Checkpoint):
    """At Ctrl-C (SIGINT), SIGTERM or SIGHUP, finishes the training step, and the validation that may be due, writes
    last.ckpt and ends.

    A second signal ends at once, and leaves the last.ckpt of the last validation. Where SIGINT or SIGHUP is ignored, or
    training is not in the main thread, nothing is changed. A ``Checkpoint``, so that Lightning calls it after other
    callbacks, whose state it saves.

    Args:
        dirpath: of last.ckpt.
    """

    def __init__(self, dirpath: str) -> None:
        self.path = Path(dirpath) / LAST
        self.received: int | None = None
        """The signal; None for none."""
        self.trained = False
        """Whether the training has come to its end."""
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        # Lightning's answer to SIGTERM is a collective, which waits for ever for a rank that computes.
        taken = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so after nohup, say
            taken.append(signal.SIGINT)
        if signal.getsignal(signal.SIGHUP) in (signal.SIG_DFL, _end):  # a terminal that is closed
            taken.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in taken}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # there is nothing to save
            signal.signal(signal.SIGTERM, _end)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A run that goes on from here validates next at the next interval, and has no use for half a sum of gradients.
        asked = self._asked(trainer)
        if asked and not _validation_is_due(trainer) and not (batch_idx + 1) % trainer.accumulate_grad_batches:
            self._save_and_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Where one follows every step, there is no step without one to end after.
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.val_check_batch != 1 or trainer.should_stop:
            return
        if self._asked(trainer):
            pl_module.on_validation_end()  # which Lightning would call after this
            self._save_and_end(trainer, pl_module)

    def _asked(self, trainer: L.Trainer) -> bool:
        asked = self.received is not None
        if trainer.world_size > 1:  # all ranks save together, or none
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        return asked

    def _save_and_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        pl_module.rows.write_training(pl_module.samples_seen)  # which Lightning would ask for after this
        if all(bool(weight.isfinite().all()) for weight in pl_module.parameters()):  # else the last one is of more use
            trainer.save_checkpoint(self.path)
        raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()
        self.trained = True
        if self.received is not None:  # in the last validation, which has written its checkpoint
            raise KeyboardInterrupt

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        log.info("interrupted: saving after this step (after a validation that has begun). Ctrl-C again ends at once")

    def _restore(self) -> None:
        # At an interrupt Lightning ignores further ones until the process ends.
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise SystemExit where they would end the process before it can say so."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGHUP) if main else ()
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def exit_status(trainer: L.Trainer, error: BaseException) -> int:
    """Return that of a process that a signal has ended: 128 and the signal's number."""
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return error.code
    return 128 + next((callback.received for callback in _own(trainer) if callback.received), signal.SIGINT)


def trained(trainer: L.Trainer) -> bool:
    """Whether the training has come to its end, with its last validation, even where a signal came in that."""
    return any(callback.trained for callback in _own(trainer))


def _own(trainer: L.Trainer) -> list[SaveOnInterrupt]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # missing from its annotations
    return [callback for callback in callbacks if isinstance(callback, SaveOnInterrupt)]


def _validation_is_due(trainer: L.Trainer) -> bool:
    """Return True where a validation follows this step."""
    every = trainer.val_check_batch
    if every is None:  # by the clock
        return bool(trainer.should_stop)
    return trainer.should_stop or (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0
