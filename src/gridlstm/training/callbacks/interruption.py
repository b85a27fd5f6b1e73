"""End a run on Ctrl-C, SIGTERM or SIGHUP after the current step, with a checkpoint of that step."""

import logging
import math
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
    """Saves last.ckpt and ends after the current training step on Ctrl-C (SIGINT), SIGTERM or SIGHUP.

    A validation that is due is finished first. A second signal ends the run at once, with the last.ckpt of the last
    validation. Nothing changes if SIGINT or SIGHUP is ignored, or if training is not in the main thread. The class is a
    ``Checkpoint`` so that Lightning calls it after other callbacks, whose state it saves.

    Args:
        dirpath: directory of last.ckpt.
    """

    def __init__(self, dirpath: str) -> None:
        self.path = Path(dirpath) / LAST
        self.received: int | None = None
        """Number of the received signal; None before."""
        self.trained = False
        """True once training has ended."""
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        # Lightning handles SIGTERM in a collective, which waits forever for a rank that computes.
        taken = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # false after nohup, for example
            taken.append(signal.SIGINT)
        if signal.getsignal(signal.SIGHUP) in (signal.SIG_DFL, _end):  # sent when a terminal closes
            taken.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in taken}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # a test has nothing to save
            signal.signal(signal.SIGTERM, _end)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A resumed run validates at the next interval, and cannot use half a sum of gradients.
        asked = self._asked(trainer)
        if asked and not _validation_is_due(trainer) and not (batch_idx + 1) % trainer.accumulate_grad_batches:
            self._save_and_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # If every step is followed by a validation, the run can end only after one.
        every_step = (trainer.val_check_batch or math.inf) <= trainer.accumulate_grad_batches
        if trainer.state.fn != "fit" or trainer.sanity_checking or not every_step or trainer.should_stop:
            return
        if self._asked(trainer):
            pl_module.on_validation_end()  # Lightning would call it after this
            self._save_and_end(trainer, pl_module)

    def _asked(self, trainer: L.Trainer) -> bool:
        asked = self.received is not None
        if trainer.world_size > 1:  # all ranks save together, or none
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        return asked

    def _save_and_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Task)
        pl_module.rows.write_training(pl_module.samples_seen)  # Lightning would call it after this
        if all(bool(weight.isfinite().all()) for weight in pl_module.parameters()):  # else keep the last checkpoint
            trainer.save_checkpoint(self.path)
        raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()
        self.trained = True
        if self.received is not None:  # during the last validation, which has written its checkpoint
            raise KeyboardInterrupt

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        log.info("interrupted: will save after this step or a running validation. Press Ctrl-C again to end at once")

    def _restore(self) -> None:
        # After an interrupt, Lightning ignores further ones until the process ends.
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)


_ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a process without a record unless they are handled."""


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit if they would otherwise end the process without a record."""
    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in _ENDING if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def later_signals_ignored() -> Iterator[None]:
    """Ignore the signals of ``ending_by_signal`` after the block, so that the record is written completely.

    torchrun sends SIGTERM to all ranks as soon as one fails, often while rank zero records that it lost its connection.
    """
    try:
        yield
    finally:
        for number in _ENDING:
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def exit_status(trainer: L.Trainer, error: BaseException) -> int:
    """Return the exit status of a process that a signal has ended: 128 plus the signal's number."""
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return error.code
    return 128 + next((callback.received for callback in _own(trainer) if callback.received), signal.SIGINT)


def trained(trainer: L.Trainer) -> bool:
    """Return True once training and its final validation have finished, even if a signal arrived meanwhile."""
    return any(callback.trained for callback in _own(trainer))


def _own(trainer: L.Trainer) -> list[SaveOnInterrupt]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # missing from its annotations
    return [callback for callback in callbacks if isinstance(callback, SaveOnInterrupt)]


def _validation_is_due(trainer: L.Trainer) -> bool:
    """Return True if a validation follows this step."""
    every = trainer.val_check_batch
    if every is None:  # the interval is a time
        return bool(trainer.should_stop)
    return trainer.should_stop or (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0
