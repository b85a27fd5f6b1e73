"""``python -m gridlstm.multirun.measure``: what jobs will take, by a few steps of each.

A process of its own, because a sweeping process starts no threads and holds no GPU. JSON goes in,
[{"config", "rows"}, …], and comes out, [{"seconds", "bytes"} of one batch, or {"error"}, …].

Shape legend: T time steps of a batch.
"""

import gc
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from gridlstm.cost import run_once
from gridlstm.errors import UserError
from gridlstm.runtime.build import Run, build
from gridlstm.runtime.job import quiet
from gridlstm.threads import wait_briefly

_SECONDS_A_JOB = 3.0
_SECONDS = 60.0


def measure(run: Run, rows: int) -> tuple[float, int]:
    """(seconds of one batch with its optimiser step, bytes that the job will need), with ``rows`` rows a process.

    Windows of 1, 2, 4, … time steps are trained on until the whole one is, or the time is spent; from there the line
    through the two longest goes on to T. The memory is that of this process before it trains (on a GPU, the
    parameters), the optimiser's state, and the most that is alive during a step.
    """
    device = run.trainer.strategy.root_device
    task = run.task.to(device)
    run.trainer.precision_plugin.convert_module(task)
    batch = run.data.on_after_batch_transfer(next(iter(run.data.train_dataloader())), 0)
    inputs = batch.inputs[:rows].to(device)
    optimizer = task.make_optimizer(task.parameters())
    before = _resident_bytes() if device.type == "cpu" else sum(p.nbytes for p in task.parameters())

    def train(t: int) -> float:
        start = time.perf_counter()
        with run.trainer.precision_plugin.forward_context():
            logits, _ = task(inputs[:, :t])
        logits.logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def peak(t: int) -> float:
        with run.trainer.precision_plugin.forward_context():
            return float(run_once(task, inputs[:, :t]).peak_bytes)

    T = inputs.shape[1]
    took = {1: train(1)}  # with all that is measured, built or cached once in a process
    start = time.perf_counter()
    for t in _lengths(T):
        # The least of a few, where that is cheap: what else runs on the machine only adds.
        took[t] = min(train(t) for _ in range(1 if took[max(took)] > _SECONDS_A_JOB / 10 else 3))
        if len(took) > 1 and time.perf_counter() - start > _SECONDS_A_JOB:
            break
    longest = sorted(took)[-2:]
    state = sum(x.nbytes for entry in optimizer.state.values() for x in entry.values() if isinstance(x, Tensor))
    return _at(T, [(t, took[t]) for t in longest]), round(before + state + _at(T, [(t, peak(t)) for t in longest]))


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
    """Measures the jobs on stdin."""
    wait_briefly()
    quiet()
    start = time.monotonic()
    results: list[dict[str, Any]] = []
    for job in json.load(sys.stdin):
        if time.monotonic() - start > _SECONDS:
            results.append({"error": f"not measured within {_SECONDS:.0f} s"})
            continue
        try:
            seconds, size = measure(build(OmegaConf.create(job["config"])), job["rows"])
            results.append({"seconds": seconds, "bytes": size})
        except UserError as error:
            results.append({"error": str(error)})
        gc.collect()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
