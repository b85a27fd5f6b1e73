"""Which job runs where: free GPUs, else free cores."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, ListConfig

from gridlstm.errors import UserError


@dataclass(frozen=True)
class Demand:
    """What one job needs.

    Attributes:
        processes: ranks, each a process.
        gpus: how many; 0 is a job on the CPU.
        chosen: the job names its GPUs itself, so it must see all of them, and runs alone.
    """

    processes: int
    gpus: int = 0
    chosen: bool = False


@dataclass(frozen=True)
class Share:
    """What one running job has: GPUs, by their CUDA identifiers, and cores."""

    gpus: tuple[str, ...]
    cores: int


def demand(trainer: DictConfig, gpus: int) -> Demand:
    """What a job with this ``trainer`` node needs on a machine with so many GPUs.

    Raises:
        UserError: it needs several machines.
    """
    if trainer.num_nodes != 1:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes}: without a queue, a sweep runs its jobs on one machine. Use "
            f"hardware=slurm, or trainer.num_nodes=1, or start the points one by one with torchrun (docs/sweeps.md)."
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
    # A number of devices that cannot be is refused by the job itself, in Lightning's words.
    count = devices if isinstance(devices, int) and devices > 0 else 1
    return Demand(count, gpus=count if on_gpu else 0)


def visible_gpus(trainers: Sequence[DictConfig]) -> tuple[str, ...]:
    """CUDA identifiers of this machine's GPUs that we may use; none where no job could want one."""
    if all(trainer.accelerator == "cpu" for trainer in trainers):
        return ()
    import torch  # takes seconds, so only for a sweep that may need a GPU

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int | None:
    """Threads of each process, where the user has set them (OMP_NUM_THREADS)."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else None


@dataclass
class Pool:
    """What is free.

    Args:
        gpus: CUDA identifiers.
        cores: that this process may use.
        jobs: how many may run at once; None is as many as there are free GPUs or cores. A number given may put several
            jobs on one GPU or core, which is then the user's choice.
        threads: of each process, where the user has set them.
    """

    gpus: tuple[str, ...]
    cores: int
    jobs: int | None
    threads: int | None
    running: list[Share] = field(default_factory=list)

    def threads_of(self, demand: Demand, jobs: int) -> int:
        """Threads for each process of such a job in a sweep of ``jobs`` jobs."""
        if self.threads is not None:
            return self.threads
        most = len(self.gpus) // demand.gpus if demand.gpus else self.cores // demand.processes
        at_once = max(1, min(jobs, self.jobs or most))
        return max(1, self.cores // (at_once * demand.processes))

    def take(self, demand: Demand, threads: int) -> Share | None:
        """A share for one more job, or None while there is none. A job larger than the machine gets it all, alone."""
        if self.jobs is not None and len(self.running) >= self.jobs:
            return None
        if demand.chosen and self.running:
            return None
        load = {gpu: sum(gpu in share.gpus for share in self.running) for gpu in self.gpus}
        free = sorted((gpu for gpu in self.gpus if self.jobs or not load[gpu]), key=lambda gpu: load[gpu])
        gpus = self.gpus if demand.chosen else tuple(free[: demand.gpus])
        if len(gpus) < min(demand.gpus, len(self.gpus)):
            return None
        # A job on a GPU needs the cores only to feed it.
        cores = 0 if gpus else min(demand.processes * threads, self.cores)
        used = sum(share.cores for share in self.running)
        if self.jobs is None and not gpus and self.running and used + cores > self.cores:
            return None
        share = Share(gpus, cores)
        self.running.append(share)
        return share

    def give_back(self, share: Share) -> None:
        """The job that had this share has ended."""
        self.running.remove(share)
