"""Run the jobs of a sweep in SLURM: submitit submits and requeues them, torchrun starts their ranks."""

import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from omegaconf import DictConfig
from submitit.helpers import DelayedSubmission, clean_env

from gridlstm.errors import UserError
from gridlstm.files import read_json, write_text
from gridlstm.multirun.devices import Demand, Share
from gridlstm.multirun.jobs import Job
from gridlstm.multirun.process_tree import ProcessTree
from gridlstm.multirun.start import CONSOLE, Start, command, environment, torchrun

log = logging.getLogger(__name__)

SUBMITTED = "slurm.json"
"""File in a job's directory that holds its SLURM job number."""

_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
}  # fmt: skip
"""Final job states of SLURM."""
_RUNNING = {"RUNNING", "COMPLETING"}
_FORGOTTEN = ""
"""State of a job that SLURM no longer knows; it forgets ended jobs after some minutes."""

_ASK_SECONDS = 3.0
_COMPLETING_SECONDS = 60.0
"""Seconds to wait for a completing job; SLURM kills its processes half a minute after asking them to end (KillWait)."""
_USERS = ("SLURM_CONF",)


def demand(trainer: DictConfig) -> Demand:
    """Return the demand of each node of a job with this ``trainer`` node.

    Raises:
        UserError: ``trainer.devices`` is not a number; the devices of a node are not known here.
    """
    if type(trainer.devices) is not int or trainer.devices < 1:
        raise UserError(
            f"hardware=slurm needs the number of devices per node, such as trainer.devices=4, got {trainer.devices!r}."
        )
    return Demand(trainer.devices, gpus=trainer.devices if trainer.accelerator in ("gpu", "cuda") else 0)


@dataclass
class Attempt:
    """Callable that SLURM runs on each node of a job; a requeued job runs it again and resumes.

    Attributes:
        job: job to run.
        demand: demand of each node.
        threads: threads of each process.
        hydra_words: words of the command line for Hydra, see ``gridlstm.config.hydra_words``.
    """

    job: Job
    demand: Demand
    threads: int
    hydra_words: list[str]

    def __call__(self) -> None:
        """Run the ranks of this node.

        Raises:
            RuntimeError: the ranks have failed.
        """
        place = submitit.JobEnvironment()
        rendezvous = ["--standalone"]
        if place.num_nodes > 1:
            # Jobs that share a node need different ports.
            port = 20_000 + int(place.raw_job_id) % 20_000
            head = place.hostnames[0]
            rendezvous = [f"--nnodes={place.num_nodes}", f"--node-rank={place.node}"]
            rendezvous += [f"--master-addr={head}", f"--master-port={port}"]
        asked_to_end: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: asked_to_end.append(number))
        console = self.job.directory / (CONSOLE if place.node == 0 else f"node{place.node}-{CONSOLE}")
        tree = ProcessTree(
            # torchrun also starts a single rank: without it, Lightning would save in mid-step in SLURM, and requeue.
            command(self.job, torchrun(self.demand.processes, rendezvous), self.hydra_words),
            environment(os.environ, self.demand, Share((), 0), self.threads, alone=False),
            console,
        )
        try:
            while (how := tree.ended()) is None:
                time.sleep(0.2)
            # SLURM does not requeue a preempted job that exits within its grace time, so wait until SLURM ends it.
            while how and asked_to_end:
                time.sleep(1)
        finally:
            tree.kill()  # even if submitit ends this process to requeue the job
        if how:
            raise RuntimeError(f"ended with {how}; see {console}")

    def checkpoint(self) -> DelayedSubmission:
        """Return this attempt for submitit, which submits it again after a preemption or at the time limit."""
        return DelayedSubmission(self)


class Queue:
    """States of the jobs in SLURM's queue, requested for all jobs at once and at most every few seconds."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._asked = 0.0

    def watch(self, number: str) -> None:
        """Track the state of this job from now on."""
        self._states[number] = "PENDING"

    def state(self, number: str) -> str:
        """Return the SLURM state of a job, or "" some minutes after its end, when SLURM has forgotten it."""
        if time.monotonic() - self._asked >= _ASK_SECONDS:
            self.ask()
        return self._states[number]

    def ask(self) -> None:
        """Request all states now. If SLURM does not answer, as when its controller starts, keep the known states."""
        line = ["squeue", f"--user={os.getuid()}", "--noheader", "--states=all", "--format=%A %T"]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        except subprocess.SubprocessError as error:
            log.warning("SLURM does not answer, will retry: %s %s", error, getattr(error, "stderr", None) or "")
        else:
            found: dict[str, str] = dict(row.split() for row in done.stdout.splitlines())
            self._states = {number: found.get(number, _FORGOTTEN) for number in self._states}
        self._asked = time.monotonic()

    def wait_while_completing(self, number: str) -> None:
        """Wait until SLURM has ended the processes of a job that is completing, but a minute at most.

        The job's outcome is decided. If it counted as running, the sweep would wait for it and find it interrupted.
        """
        deadline = time.monotonic() + _COMPLETING_SECONDS
        self.ask()
        while self._states[number] == "COMPLETING" and time.monotonic() < deadline:
            time.sleep(_ASK_SECONDS)
            self.ask()


@dataclass
class SlurmJob:
    """Job in SLURM's queue.

    Attributes:
        number: job number in SLURM.
        directory: directory of the job.
        folder: directory of submitit's files.
        queue: states of all jobs.
    """

    number: str
    directory: Path
    folder: Path
    queue: Queue

    def state(self) -> str:
        return "running" if self.queue.state(self.number) in _RUNNING else "queued"

    def ended(self) -> str | None:
        """Return how the job ended, "" for success, or None if it has not ended."""
        state = self.queue.state(self.number)
        if state not in _ENDED and state != _FORGOTTEN:
            return None
        # Makes NFS read the directory again, because another machine has written there.
        self.directory.chmod(self.directory.stat().st_mode)
        if state in ("COMPLETED", _FORGOTTEN):
            return ""
        return f"SLURM state {state}, see {self.folder}/{self.number}_*"

    def interrupt(self) -> None:
        """Cancel the job in SLURM."""
        subprocess.run(["scancel", self.number], check=False)

    def kill(self) -> None:
        if self.ended() is None:
            self.interrupt()


def start_in_queue(folder: Path, options: dict[str, Any], max_num_timeout: int, hydra_words: Sequence[str]) -> Start:
    """Return a function that submits jobs to SLURM, or finds jobs that an earlier sweep left in the queue.

    Args:
        folder: directory of submitit's files and SLURM's output.
        options: options of submitit's executor, for all jobs.
        max_num_timeout: number of times a job may reach its time limit and resume.
        hydra_words: words of the command line for Hydra, see ``gridlstm.config.hydra_words``.

    Raises:
        UserError: SLURM is not installed here.
    """
    if shutil.which("sbatch") is None:
        raise UserError("hardware=slurm needs SLURM, but sbatch is missing here. Start the sweep on a login node.")
    queue = Queue()

    def start(job: Job, demand: Demand, share: Share, threads: int, only: bool) -> SlurmJob:
        if number := read_json(job.directory / SUBMITTED).get("job"):
            queue.watch(number)
            queue.wait_while_completing(number)
            left = SlurmJob(number, job.directory, folder, queue)
            if left.ended() is None or job.completed():
                return left
        job.begin()
        executor = submitit.SlurmExecutor(folder, max_num_timeout=max_num_timeout)
        # On its node the job is not part of a sweep.
        overrides = [*job.overrides, "hydra/launcher=process"]
        alone = replace(job, directory=job.directory.resolve(), overrides=overrides, config=DictConfig({}))
        attempt = Attempt(alone, demand, threads, list(hydra_words))
        cpus = demand.processes * threads
        # torchrun starts the ranks of a node, so that a failed rank ends the others. srun ignores the number of CPUs
        # given to sbatch.
        executor.update_parameters(
            job_name=job.name,
            nodes=job.config.trainer.num_nodes,
            ntasks_per_node=1,
            cpus_per_task=cpus,
            gpus_per_node=demand.gpus or None,
            srun_args=[f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
            **options,
        )
        # If the sweep runs inside a SLURM job, keep only the user's own variables of its environment.
        given = {name: value for name, value in os.environ.items() if name in _USERS or name.startswith("SBATCH_")}
        try:
            with clean_env():
                os.environ.update(given)
                number = executor.submit(attempt).job_id
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(f"SLURM refuses {job.name}: {error}") from error
        write_text(job.directory / SUBMITTED, json.dumps({"job": number}) + "\n")
        queue.watch(number)
        return SlurmJob(number, job.directory, folder, queue)

    return start
