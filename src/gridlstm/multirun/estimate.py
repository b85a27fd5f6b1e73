"""Estimate the time of a sweep and the memory of its jobs before it starts."""

import datetime
import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gridlstm.files import read_json, write_text
from gridlstm.machine import memory
from gridlstm.multirun.devices import Demand
from gridlstm.multirun.jobs import Job, Trained
from gridlstm.multirun.process_tree import ProcessTree, last_line
from gridlstm.multirun.start import torchrun
from gridlstm.options import Role, leaves, role

log = logging.getLogger(__name__)

LEAST_STEPS = 2000
"""Total optimizer steps below which a sweep starts without an estimate, which would take seconds."""
_LEAST_SECONDS = 3600.0
_PATIENCE_SECONDS = 300.0
_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Seconds of training with validation for one job, None without a last step; bytes of all its ranks."""

    seconds: float | None
    bytes: int


def announce(
    jobs: Sequence[tuple[Job, Demand]], at_once: int, environment: Mapping[str, str], interrupted: Sequence[int] = ()
) -> None:
    """Log how long a sweep of an hour or more will take, and warn if memory is insufficient.

    Args:
        jobs: jobs with their demands.
        at_once: number of jobs that run at once.
        environment: environment variables of the measuring process.
        interrupted: received signals; the first ends the measurement without a log line.
    """
    jobs = [(job, demand) for job, demand in jobs if "fit" in job.config.stages]
    each = [(job.config, job.trained()) for job, _ in jobs]
    steps, clocks = [_batches(*job) for job in each], [_clock(*job) for job in each]
    if sum(LEAST_STEPS if n is None else n for n in steps) < LEAST_STEPS:
        return
    if sum(math.inf if clock is None else clock for clock in clocks) < _LEAST_SECONDS:
        return
    log.info("estimating time and memory from a few steps of the jobs")
    found = estimates(jobs, environment, interrupted)
    if interrupted:
        return
    known = {name: e for name, e in found.items() if isinstance(e, Estimate)}
    for line in lines(list(known.values()), at_once):
        log.info("%s", line)
    on_cpu = {job.name for job, demand in jobs if not demand.gpus}
    for line in warnings({name: e for name, e in known.items() if name in on_cpu}, at_once, memory()):
        log.warning("%s", line)
    for reason in dict.fromkeys(e for e in found.values() if isinstance(e, str)):
        names = [name for name, e in found.items() if e == reason]
        log.info(
            "no estimate for %s%s: %s",
            names[0],
            f" and {len(names) - 1} more" if names[1:] else "",
            reason.partition("\n")[0],
        )


def lines(known: Sequence[Estimate], at_once: int) -> list[str]:
    """Return log lines on the estimated jobs; none for a sweep of less than an hour."""
    ending = [e.seconds for e in known if e.seconds is not None]
    if not known or (len(ending) == len(known) and sum(ending) < _LEAST_SECONDS):
        return []
    text = f"{len(known)} job{'' if len(known) == 1 else 's'}"
    if ending:
        each = " each" if len(ending) > 1 else ""
        # A schedule is at least as long as its longest job, and as the total work divided by the places.
        whole = max(max(ending), sum(ending) / min(at_once, len(ending)))
        text += f", about {_range([s / 3600 for s in ending])} h{each} of training"
        text += f", {_number(sum(ending) / 3600)} h in all, {_number(whole / 3600)} h with {at_once} at once"
    if len(ending) < len(known):
        text += f", {len(known) - len(ending)} without a last step"
    sizes = [e.bytes / _GIB for e in known]
    return [f"estimate: {text}; {_range(sizes)} GiB of memory{' each' if len(known) > 1 else ''}"]


def warnings(known: Mapping[str, Estimate], at_once: int, there: int) -> list[str]:
    """Return a warning if jobs need more than the machine's memory of ``there`` bytes, alone or together."""
    if too_large := [name for name, e in known.items() if e.bytes > there]:
        most = max(known[name].bytes for name in too_large)
        return [
            f"{', '.join(too_large)}: needs about {_number(most / _GIB)} GiB of memory, but this machine has "
            f"{_number(there / _GIB)}. Use a smaller task.data.batch_size with trainer.accumulate_grad_batches, or "
            f"model.sweep=recompute if the model has it."
        ]
    together = sum(sorted((e.bytes for e in known.values()), reverse=True)[:at_once])
    if together > there:
        return [
            f"{at_once} jobs at once need up to {_number(together / _GIB)} GiB of memory, but this machine has "
            f"{_number(there / _GIB)}. Run fewer with hydra.launcher.jobs."
        ]
    return []


def estimates(
    jobs: Sequence[tuple[Job, Demand]], environment: Mapping[str, str], interrupted: Sequence[int] = ()
) -> dict[str, Estimate | str]:
    """Return each job's estimate, or the reason why it has none. Jobs with equal costs are measured once."""
    kinds: dict[str, tuple[dict[str, Any], int]] = {}
    kind_of: dict[str, str] = {}
    result: dict[str, Estimate | str] = {}
    for job, demand in jobs:
        try:
            with job.at_hand():
                key = kind_of[job.name] = _costly(job.config, demand)
                if key not in kinds:
                    kinds[key] = _measurable(job.config, demand), demand.processes
        except OmegaConfBaseException as error:
            result[job.name] = str(error).partition("\n")[0]
    measured = dict(zip(kinds, _measured(list(kinds.values()), environment, interrupted), strict=True))
    for job, demand in jobs:
        if job.name in kind_of:
            found = measured[kind_of[job.name]]
            result[job.name] = (
                found["error"] if "error" in found else estimate(job.config, demand, found, job.trained())
            )
    return result


def estimate(config: DictConfig, demand: Demand, found: Mapping[str, Any], trained: Trained) -> Estimate:
    """Return the estimate of the rest of a job from the result of ``measure`` for one batch and one validation."""
    batches, clock = _batches(config, trained), _clock(config, trained)
    every = config.trainer.val_check_interval
    whole = None
    if batches is not None:
        # Other intervals (a share of an epoch, or a time) mean few validations.
        validations = batches // every if type(every) is int and every > 0 else 1
        whole = batches * found["seconds"] + validations * found["validation_seconds"]
    limits = [whole, clock]
    return Estimate(min((s for s in limits if s is not None), default=None), found["bytes"] * demand.processes)


def _batches(config: DictConfig, trained: Trained) -> int | None:
    """Return the number of training batches left of a job, or None if only a clock or the user ends it."""
    steps = config.trainer.max_steps
    left = None if steps is None or steps < 0 else max(0, steps - trained.steps)
    return None if left is None else int(left * config.trainer.accumulate_grad_batches)


def _clock(config: DictConfig, trained: Trained) -> float | None:
    """Return the seconds left of a job's time limit, or None if it has none."""
    limit = _seconds(config.trainer.max_time)
    return None if limit is None else max(0.0, limit - trained.seconds)


def _seconds(max_time: str | None) -> float | None:
    """Return the seconds of DD:HH:MM:SS, or None for any other format, which Lightning checks."""
    parts = str(max_time).split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        return None
    days, hours, minutes, seconds = map(int, parts)
    return datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()


def _costly(config: DictConfig, demand: Demand) -> str:
    """Return the options that decide a job's cost as text, equal for jobs of one cost; it omits the learning rate."""
    decides = (Role.NETWORK, Role.DATA, Role.SOURCE, Role.TRAINING, Role.SPEED)
    options = {key: value for key, value in leaves(_plain(config)) if role(key) in decides and key != "optimizer.lr"}
    return json.dumps([options, demand.processes, demand.gpus], sort_keys=True, default=str)


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return a job's resolved configuration without Hydra's node, which describes the sweep."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return cast(dict[str, Any], OmegaConf.to_container(own, resolve=True))


def _measurable(config: DictConfig, demand: Demand) -> dict[str, Any]:
    """Return a job's configuration without an end, without output files and without callbacks but the engine's."""
    plain = _plain(config)
    accelerator = config.trainer.accelerator
    return plain | {
        "trainer": plain["trainer"]
        | {
            "max_steps": -1,
            "max_time": None,
            "val_check_interval": 10**9,
            "accelerator": accelerator if demand.gpus or accelerator == "auto" else "cpu",
            "devices": plain["trainer"]["devices"] if demand.chosen else demand.processes,
            "num_nodes": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "profiler": None,
        },
        "scheduler": None,
        "callbacks": {
            name: options for name, options in (plain["callbacks"] or {}).items() if name == "engine_choices"
        },
        "logger": {},
    }


def _measured(
    kinds: list[tuple[dict[str, Any], int]], environment: Mapping[str, str], interrupted: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the results of ``measure`` for each configuration, with the number of processes of its job."""
    found: dict[int, dict[str, Any]] = {}
    for processes in {number for _, number in kinds}:
        numbers = [n for n, (_, number) in enumerate(kinds) if number == processes]
        results = _measured_by(processes, [kinds[n][0] for n in numbers], environment, interrupted)
        found |= dict(zip(numbers, results, strict=True))
    return [found[n] for n in range(len(kinds))]


def _measured_by(
    processes: int, kinds: list[dict[str, Any]], environment: Mapping[str, str], interrupted: Sequence[int]
) -> Sequence[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        given, out, console = (Path(name) / file for file in ("jobs.json", "results.json", "console.log"))
        write_text(given, json.dumps(kinds))
        ranks = torchrun(processes, ["--standalone"]) if processes > 1 else []
        line = [sys.executable, *ranks, "-m", "gridlstm.multirun.measure", str(given), str(out)]
        tree = ProcessTree(line, environment, console)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        try:
            while (how := tree.ended()) is None and time.monotonic() < deadline and not interrupted:
                time.sleep(0.1)
        finally:
            tree.kill()
        if how == "":
            results: list[dict[str, Any]] = json.loads(out.read_text())
            return results
        error = {
            "error": f"the measurement took more than {_PATIENCE_SECONDS / 60:.0f} minutes"
            if how is None
            else last_line(console) or f"ended with {how}"
        }
        return [read_json(result_file(out, n)) or error for n in range(len(kinds))]


def result_file(out: Path, number: int) -> Path:
    """Return the file with the result of one measured job, which exists once it is measured."""
    return out.with_name(f"{out.name}.{number}")


def _number(value: float) -> str:
    """Format a number with two digits, because an estimate is not more precise."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _range(values: Sequence[float]) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"
