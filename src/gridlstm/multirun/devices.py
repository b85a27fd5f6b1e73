"""Assign jobs to free GPUs, or to free cores."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, ListConfig

from gridlstm.errors import UserError


@dataclass(frozen=True)
class Demand:
    """Resources that one job needs.

    Attributes:
        processes: number of ranks, each a process.
        gpus: number of GPUs; 0 for a job on the CPU.
        chosen: True if the job names its GPUs itself. It must then see all of them, and runs alone.
    """

    processes: int
    gpus: int = 0
    chosen: bool = False


@dataclass(frozen=True)
class Share:
    """Resources that one running job holds: GPUs by CUDA identifier, and cores."""

    gpus: tuple[str, ...]
    cores: int


def demand(trainer: DictConfig, gpus: int) -> Demand:
    """Return the demand of a job with this ``trainer`` node on a machine with ``gpus`` GPUs.

    Raises:
        UserError: the job needs several machines.
    """
    if trainer.num_nodes != 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} needs a queue: otherwise a sweep runs on one machine. Use "
            f"hardware=slurm, or trainer.num_nodes=1, or start each point with torchrun (docs/sweeps.md)."
        )
    devices: Any = trainer.devices
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    on_gpu = trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and gpus > 0)
    if isinstance(devices, ListConfig) or (isinstance(devices, str) and "," in devices):
        count = len(devices) if isinstance(devices, ListConfig) else len(devices.strip(",").split(","))
        return Demand(count, gpus=count if on_gpu else 0, chosen=True)
    if devices in (-1, "auto"):
        devices = max(gpus, 1) if on_gpu else 1
    # The job itself refuses an invalid number of devices, with Lightning's message.
    count = devices if isinstance(devices, int) and devices > 0 else 1
    return Demand(count, gpus=count if on_gpu else 0)


def visible_gpus(trainers: Sequence[DictConfig]) -> tuple[str, ...]:
    """Return the CUDA identifiers of the usable GPUs of this machine; () if no job could use one."""
    if all(trainer.accelerator == "cpu" for trainer in trainers):
        return ()
    import torch  # takes seconds, so only for a sweep that may need a GPU

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def threads() -> int | None:
    """Return the threads per process if the user has set them (OMP_NUM_THREADS), else None."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else None


@dataclass
class Pool:
    """Free resources.

    Args:
        gpus: CUDA identifiers.
        cores: number of cores that this process may use.
        jobs: number of jobs that may run at once; None to limit them only by free GPUs or cores. With a number,
            several jobs may share one GPU or core.
        threads: threads per process if the user has set them.
    """

    gpus: tuple[str, ...]
    cores: int
    jobs: int | None
    threads: int | None
    running: list[Share] = field(default_factory=list)

    def threads_of(self, demand: Demand, jobs: int) -> int:
        """Return the threads of each process of a job with this demand, in a sweep of ``jobs`` jobs."""
        if self.threads is not None:
            return self.threads
        most = len(self.gpus) // demand.gpus if demand.gpus else self.cores // demand.processes
        at_once = max(1, min(jobs, self.jobs or most))
        return max(1, self.cores // (at_once * demand.processes))

    def take(self, demand: Demand, threads: int) -> Share | None:
        """Return a share for one more job, or None if nothing is free. A job larger than the machine gets all of it."""
        if self.jobs is not None and len(self.running) >= self.jobs:
            return None
        if demand.chosen and self.running:
            return None
        load = {gpu: sum(gpu in share.gpus for share in self.running) for gpu in self.gpus}
        free = sorted((gpu for gpu in self.gpus if self.jobs or not load[gpu]), key=lambda gpu: load[gpu])
        gpus = self.gpus if demand.chosen else tuple(free[: demand.gpus])
        if len(gpus) < min(demand.gpus, len(self.gpus)):
            return None
        # A job on a GPU uses cores only to feed it.
        cores = 0 if gpus else min(demand.processes * threads, self.cores)
        used = sum(share.cores for share in self.running)
        if self.jobs is None and not gpus and self.running and used + cores > self.cores:
            return None
        share = Share(gpus, cores)
        self.running.append(share)
        return share

    def give_back(self, share: Share) -> None:
        """Free the share of a job that has ended."""
        self.running.remove(share)
