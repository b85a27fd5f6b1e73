"""What a run of several ranks needs beside what Lightning does."""

import atexit
from collections.abc import Callable, Sequence
from subprocess import Popen
from typing import Any

import lightning as L


class Ranks(L.Callback):
    """Changes the run's record only when all ranks have read it, and lets rank zero live until it has written it.

    To be called first of all callbacks.

    Args:
        begin: called on every rank, once, when all have come together.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin: Callable[[], None] | None = begin

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._begin is not None:
            begin, self._begin = self._begin, None
            begin()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Lightning kills rank zero, unasked, within seconds of the end of a rank that it has started itself.
        started: list[Popen[Any]] = getattr(trainer.strategy.launcher, "procs", [])
        others = list(started)
        started.clear()  # the list that its observer looks at
        if others:
            atexit.register(_end, others)


def _end(processes: Sequence[Popen[Any]]) -> None:
    """Ends those that wait for rank zero and would for ever."""
    for process in processes:
        if process.poll() is None:
            process.kill()
