"""Synchronize the ranks of a run with its record, in addition to what Lightning does."""

import atexit
from collections.abc import Callable, Sequence
from subprocess import Popen
from typing import Any

import lightning as L


class Ranks(L.Callback):
    """Changes the run's record only after all ranks have read it, and keeps rank zero alive until it has written it.

    It must be the first callback.

    Args:
        begin: called once on every rank, when all ranks are ready.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin: Callable[[], None] | None = begin

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._begin is not None:
            begin, self._begin = self._begin, None
            begin()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Lightning kills rank zero within seconds of the end of a rank that it has started.
        started: list[Popen[Any]] = getattr(trainer.strategy.launcher, "procs", [])
        others = list(started)
        started.clear()  # Lightning watches this list
        if others:
            atexit.register(_end, others)


def _end(processes: Sequence[Popen[Any]]) -> None:
    """Kill ranks that would wait for rank zero forever."""
    for process in processes:
        if process.poll() is None:
            process.kill()
