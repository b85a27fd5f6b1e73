"""Start a job on this machine: command line, environment and ranks."""

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
"""Variables that a distributed parent must not pass to a child that starts its own ranks."""

CONSOLE = "console.log"
"""File in a job's directory with everything that its processes print."""


class Process(Protocol):
    """Started job: processes on this machine or elsewhere."""

    def state(self) -> str:
        """Return "running", or "queued" while it waits for a machine."""

    def ended(self) -> str | None:
        """Return how the job ended, "" for success, or None while it runs."""

    def interrupt(self) -> None:
        """Ask the job to end."""

    def kill(self) -> None:
        """Kill the job."""


Start = Callable[[Job, Demand, Share, int, bool], Process]
"""(job, demand, share, threads per process, True if it runs alone) -> started job."""


def start_here(hydra_words: Sequence[str]) -> Start:
    """Return a function that starts jobs on this machine.

    Args:
        hydra_words: words of the command line for Hydra, see ``gridlstm.config.hydra_words``.
    """

    def start(job: Job, demand: Demand, share: Share, threads: int, alone: bool) -> ProcessTree:
        job.begin()
        ranks = torchrun(demand.processes, ["--standalone"]) if demand.processes > 1 else []
        return ProcessTree(
            command(job, ranks, hydra_words),
            environment(os.environ, demand, share, threads, alone),
            job.directory / CONSOLE,
        )

    return start


def torchrun(processes: int, rendezvous: Sequence[str]) -> list[str]:
    """Return the arguments that start this number of ranks on this machine.

    Lightning would start rank 1 from within rank 0, with a copy of its command line. When a rank dies, it kills rank 0,
    which then cannot record how the run ended. torchrun starts all ranks alike, ends the others when one fails, and
    finds a free port.
    """
    return ["-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={processes}"]


def command(job: Job, ranks: Sequence[str], hydra_words: Sequence[str]) -> list[str]:
    """Return the command line of one job, which resumes if there is a checkpoint.

    Args:
        job: job to run.
        ranks: arguments from ``torchrun``; empty for one process.
        hydra_words: words of the command line for Hydra, see ``gridlstm.config.hydra_words``.
    """
    overrides = list(job.overrides)
    if job.resumable():
        overrides = [o for o in overrides if not o.startswith("ckpt_path=")] + ["ckpt_path=last"]
    if not any(o.startswith("run.name=") for o in overrides):
        overrides.append(f"run.name={quoted(job.name)}")  # same name in the log, W&B and the table of jobs
    directory = quoted(str(job.directory.resolve()))
    return [sys.executable, *ranks, "-m", "gridlstm.train", *hydra_words, *overrides, f"hydra.run.dir={directory}"]


def environment(given: Mapping[str, str], demand: Demand, share: Share, threads: int, alone: bool) -> dict[str, str]:
    """Return the environment variables of one job: the sweep's, changed to the job's share of the machine.

    Args:
        given: environment variables of the sweep.
        demand: resources that the job needs.
        share: resources that the job holds.
        threads: threads per process.
        alone: True if no other job runs at the same time.
    """
    variables = {name: value for name, value in given.items() if name not in _LEAKS}
    if share.gpus and not demand.chosen:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if not alone or demand.processes > 1:
        # torch would use all cores in each process.
        variables.setdefault("OMP_NUM_THREADS", str(threads))
    return variables
