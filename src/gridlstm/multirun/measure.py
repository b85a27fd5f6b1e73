"""``python -m gridlstm.multirun.measure JOBS RESULTS``: train jobs for some seconds each, for the estimate of a sweep.

It runs in separate processes, one for each rank, because the process of a sweep starts no threads and uses no GPU.
JOBS is a JSON list of configurations. RESULTS is one of {"seconds", "validation_seconds", "bytes"} or {"error"}.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from gridlstm.command import prepare
from gridlstm.errors import UserError
from gridlstm.files import write_text
from gridlstm.multirun.estimate import result_file
from gridlstm.training import provenance
from gridlstm.training.build import Run, build
from gridlstm.training.job import quiet
from gridlstm.training.match import match_size

_SECONDS_A_JOB = 3.0
_PATIENCE_SECONDS = 60.0
_BUILDING, _WARM_UP, _MOST = 1, 5, 300
"""Batches: the first one builds and caches, all after the warm-up take equal time, and the last number is a limit."""


class Cost(NamedTuple):
    """Cost of one job."""

    seconds: float
    """Seconds of one batch with its optimizer step."""
    validation_seconds: float
    """Seconds of one whole validation."""
    bytes: int
    """Peak memory of one process."""


class _Stopwatch(L.Callback):
    """Ends training after some seconds, and measures the mean time of a batch and the time of a validation batch."""

    def __init__(self) -> None:
        self._batches = self._start = self._before = 0.0
        self.seconds = self.validation_seconds = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._batches += 1
        now = time.perf_counter()
        if self._batches == _BUILDING or (self._batches == _WARM_UP and now - self._start < _SECONDS_A_JOB / 3):
            self._start, self._before = now, self._batches
            return
        self.seconds = (now - self._start) / (self._batches - self._before)
        enough = now - self._start > _SECONDS_A_JOB or self._batches >= _MOST
        if trainer.strategy.reduce_boolean_decision(enough, all=False):
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        _finish(trainer)
        self._start = time.perf_counter()

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        _finish(trainer)
        self.validation_seconds = time.perf_counter() - self._start


def _finish(trainer: L.Trainer) -> None:
    """Wait until a GPU has computed what it was given: one batch may fit into its queue."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)


def measure(config: DictConfig) -> Cost:
    """Train a job for some seconds, validate on two batches, and return the cost. All its processes call this.

    Raises:
        UserError: the job cannot be built.
    """
    match_size(config)
    run = build(config)
    batches = validation_batches(run)  # before Lightning changes the data loaders
    watch = _Stopwatch()
    run.trainer.callbacks.append(watch)  # type: ignore[attr-defined]  # missing from its annotations
    limit = run.trainer.limit_val_batches
    run.trainer.limit_val_batches = limit if type(limit) is int and limit < 2 else 2  # 1.0 is all batches, 1 one
    run.trainer.fit(run.task, run.data)
    run.trainer.validate(run.task, run.data, verbose=False)
    device = run.trainer.strategy.root_device
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes()
    return Cost(watch.seconds, watch.validation_seconds * batches, used)


def validation_batches(run: Run) -> float:
    """Return the number of batches of one validation."""
    loader, limit = run.data.val_dataloader(), run.trainer.limit_val_batches
    # The batches of a text can be counted only by reading them.
    batches = len(loader) if isinstance(loader.dataset, Sized) else sum(1 for _ in loader)
    if isinstance(limit, float):
        return batches * limit
    return batches if limit is None else min(batches, limit)


def _resident_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measure_into(result: Path, job: dict[str, Any]) -> None:
    try:
        found: dict[str, Any] = measure(OmegaConf.create(job))._asdict()
    except UserError as error:
        found = {"error": str(error)}
    if provenance.rank() == 0:
        write_text(result, json.dumps(found))


def main() -> None:
    """Measure the jobs of a file, each in a fork of this process, so that the measured memory is the job's alone."""
    prepare()
    quiet()
    given, out = map(Path, sys.argv[1:])
    results: list[dict[str, Any]] = []
    for number, job in enumerate(json.loads(given.read_text())):
        result = result_file(out, number)
        process = multiprocessing.get_context("fork").Process(target=_measure_into, args=(result, job))
        process.start()
        process.join(_PATIENCE_SECONDS)
        if process.is_alive():
            process.kill()
            results.append({"error": f"it was not measured within {_PATIENCE_SECONDS:.0f} s"})
        elif result.exists():
            results.append(json.loads(result.read_text()))
        else:
            results.append({"error": f"its measurement ended with {process.exitcode}"})
    if provenance.rank() == 0:
        write_text(out, json.dumps(results))


if __name__ == "__main__":
    main()
