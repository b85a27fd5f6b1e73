"""How a job is started on this machine: its command line, its environment and its ranks."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gridlstm.config import quoted
from gridlstm.multirun.devices import Demand, Share
from gridlstm.multirun.jobs import Job
from gridlstm.multirun.process_tree import ProcessTree

_LEAKS = {
    "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED",
    "TORCHELASTIC_RUN_ID",
}  # fmt: skip
"""What a distributed parent would hand to a child that is to start ranks of its own."""

CONSOLE = "console.log"
"""The file of a job's directory with everything that its processes print."""


class Process(Protocol):
    """One job that was started: processes on this machine, or somewhere else."""

    def state(self) -> str:
        """running, or queued where it waits for a machine."""

    def ended(self) -> str | None:
        """How it ended, in words, "" for well; None while it has not."""

    def interrupt(self) -> None:
        """Asks it to end."""

    def kill(self) -> None:
        """Ends it at once."""


Start = Callable[[Job, Demand, Share, int, bool], Process]
"""(job, what it needs, what it has, threads of each process, whether it is alone) -> the job, started."""


def start_here(config_dirs: Sequence[str]) -> Start:
    """Starts jobs on this machine.

    Args:
        config_dirs: options of the command line that name configuration directories.
    """

    def start(job: Job, demand: Demand, share: Share, threads: int, alone: bool) -> ProcessTree:
        job.begin()
        ranks = torchrun(demand.processes, ["--standalone"]) if demand.processes > 1 else []
        return ProcessTree(
            command(job, ranks, config_dirs),
            environment(os.environ, demand, share, threads, alone),
            job.directory / CONSOLE,
        )

    return start


def torchrun(processes: int, rendezvous: Sequence[str]) -> list[str]:
    """What starts so many ranks on this machine.

    Lightning would start rank 1 itself, from within rank 0, by its command line once more; and when a rank dies, it
    kills rank 0, which then cannot record how the run ended. Torchrun starts all ranks alike, ends the others when one
    fails, and finds a free port.
    """
    return ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={processes}"]


def command(job: Job, ranks: Sequence[str], config_dirs: Sequence[str]) -> list[str]:
    """The command line of one job, which goes on where there is a checkpoint.

    Args:
        ranks: what ``torchrun`` returns; without, the job is one process.
    """
    overrides = list(job.overrides)
    if job.resumable():
        overrides = [o for o in overrides if not o.startswith("ckpt_path=")] + ["ckpt_path=last"]
    if not any(o.startswith("run.name=") for o in overrides):
        overrides.append(f"run.name={quoted(job.name)}")  # in the log and in W&B as in the table of jobs
    directory = quoted(str(job.directory.resolve()))
    return [sys.executable, *ranks, "-m", "gridlstm.train", *config_dirs, *overrides, f"hydra.run.dir={directory}"]


def environment(given: Mapping[str, str], demand: Demand, share: Share, threads: int, alone: bool) -> dict[str, str]:
    """The environment of one job: the sweep's, with the job's share of the machine.

    Args:
        alone: no other job runs beside it.
    """
    variables = {name: value for name, value in given.items() if name not in _LEAKS}
    if share.gpus and not demand.chosen:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if not alone or demand.processes > 1:
        # torch would take all cores in each of the processes.
        variables.setdefault("OMP_NUM_THREADS", str(threads))
    return variables
