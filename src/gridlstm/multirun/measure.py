"""``python -m gridlstm.multirun.measure JOBS RESULTS``: what jobs will take, by a few steps of each.

Processes of their own, as many as a job has, because a sweeping process starts no threads and holds no GPU. JOBS is a
file of JSON, [{"config", "rows"}, …], and so is RESULTS, [{"seconds", "validation_seconds", "bytes"}, or {"error"}, …].

Shape legend: T time steps of a batch.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from omegaconf import OmegaConf
from torch import Tensor

from gridlstm.atomic import write_text
from gridlstm.cost import run_once
from gridlstm.errors import UserError
from gridlstm.process import prepare
from gridlstm.runtime import provenance
from gridlstm.runtime.build import Run, build
from gridlstm.runtime.job import quiet
from gridlstm.runtime.match import match_size

_SECONDS_A_JOB = 3.0
_SECONDS = 60.0
_SMALL_SECONDS = 0.1
"""A batch faster than this is measured inside Lightning, whose own work is then a part that counts."""
_WARM_UP = 5


class Cost(NamedTuple):
    """Of one job."""

    seconds: float
    """One batch with its optimiser step."""
    validation_seconds: float
    """One whole validation."""
    bytes: int
    """The most that one of its processes will hold."""


def measure(run: Run, rows: int) -> Cost:
    """What a job will take, with ``rows`` rows a process. All processes of a job call this together.

    Windows of 1, 2, 4, … time steps are trained on until the whole one is, or the time is spent; from there the line
    through the two longest goes on to T. A batch that proves short is then trained on by Lightning; to a longer one the
    exchange of the gradients is added. The memory is that of this process before it trains (on a GPU, the parameters),
    the optimiser's state, and the most that is alive during a step.
    """
    strategy = run.trainer.strategy
    device = strategy.root_device
    task = run.task.to(device)
    run.trainer.precision_plugin.convert_module(task)
    batch = run.data.on_after_batch_transfer(next(iter(run.data.train_dataloader())), 0)
    inputs = batch.inputs[:rows].to(device)
    optimizer = task.make_optimizer(task.parameters())
    before = _resident_bytes() if device.type == "cpu" else sum(p.nbytes for p in task.parameters())

    def seconds_of(work: Any, *arguments: Any) -> float:
        start = time.perf_counter()
        work(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def train(t: int) -> None:
        with run.trainer.precision_plugin.forward_context():
            logits, _ = task(inputs[:, :t])
        logits.logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluate(t: int) -> None:
        with torch.no_grad(), run.trainer.precision_plugin.forward_context():
            task(inputs[:, :t])

    def peak(t: int) -> float:
        with run.trainer.precision_plugin.forward_context():
            return float(run_once(task, inputs[:, :t]).peak_bytes)

    T = inputs.shape[1]
    took = {1: seconds_of(train, 1)}  # with all that is measured, built or cached once in a process
    start = time.perf_counter()
    for t in _lengths(T):
        # The least of a few, where that is cheap: what else runs on the machine only adds.
        took[t] = min(seconds_of(train, t) for _ in range(1 if took[max(took)] > _SECONDS_A_JOB / 10 else 3))
        if len(took) > 1 and time.perf_counter() - start > _SECONDS_A_JOB:
            break
    longest = sorted(took)[-2:]
    evaluating = seconds_of(evaluate, longest[-1]) * T / longest[-1]
    state = sum(x.nbytes for entry in optimizer.state.values() for x in entry.values() if isinstance(x, Tensor))
    size = round(before + state + _at(T, [(t, peak(t)) for t in longest]))
    validation = evaluating * _validation_batches(run)  # before Lightning has its say about the data
    # Rank 0 decides, for what follows is done together.
    if strategy.broadcast(took.get(T, _SMALL_SECONDS) < _SMALL_SECONDS):
        seconds = _in_lightning(run, strategy.broadcast(took.get(T, 0.0)))
    else:
        gradients = torch.zeros(sum(p.numel() for p in task.parameters() if p.requires_grad), device=device)
        seconds = _at(T, [(t, took[t]) for t in longest]) + seconds_of(strategy.reduce, gradients)
    return Cost(seconds, validation, size)


class _Stopwatch(L.Callback):
    """Ends the training after so many batches, and knows the mean time of those after the first few."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.done = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.done += 1
        if self.done == _WARM_UP:
            self._start = time.perf_counter()
        if self.done == self.batches:
            self.seconds = (time.perf_counter() - self._start) / (self.batches - _WARM_UP)
            trainer.should_stop = True


def _in_lightning(run: Run, about: float) -> float:
    """Seconds of a batch that take ``about`` so many by themselves, in a training without validations."""
    watch = _Stopwatch(_WARM_UP + min(300, max(10, round(_SECONDS_A_JOB / 2 / max(about, 1e-4)))))
    run.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    run.trainer.limit_val_batches = 0
    run.trainer.fit(run.task, run.data)
    return watch.seconds


def _validation_batches(run: Run) -> float:
    loader, limit = run.data.val_dataloader(), run.trainer.limit_val_batches
    # A text's validation is as long as it is read.
    batches = len(loader) if isinstance(loader.dataset, Sized) else sum(1 for _ in loader)
    if isinstance(limit, float):
        return batches * limit
    return batches if limit is None else min(batches, limit)


def _lengths(T: int) -> Iterator[int]:
    t = 1
    while t < T:
        yield t
        t *= 2
    yield T


def _at(T: int, points: list[tuple[int, float]]) -> float:
    """The value at T of the line through one point (and the origin) or two, which never falls."""
    (t, low), (u, high) = points if len(points) == 2 else [(0, 0.0), *points]
    return high + max(high - low, 0.0) / (u - t) * (T - u)


def _resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measures the jobs of a file."""
    prepare()
    quiet()
    given, out = map(Path, sys.argv[1:])
    start = time.monotonic()
    results: list[dict[str, Any]] = []
    for job in json.loads(given.read_text()):
        try:
            config = OmegaConf.create(job["config"])
            if "match" in config:
                match_size(config)
            run = build(config)
            run.trainer.strategy.setup_environment()
            if run.trainer.strategy.broadcast(time.monotonic() - start > _SECONDS):
                results.append({"error": f"not measured within {_SECONDS:.0f} s"})
            else:
                results.append(measure(run, job["rows"])._asdict())
        except UserError as error:  # on all ranks alike
            results.append({"error": str(error)})
        gc.collect()
    if provenance.rank() == 0:
        write_text(out, json.dumps(results))


if __name__ == "__main__":
    main()
