"""Jobs of a sweep as jobs of SLURM: submitit submits them and requeues them, torchrun starts their ranks."""

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
"""The file of a job's directory with its number in SLURM."""

_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
}  # fmt: skip
"""States of SLURM that a job does not leave."""
_RUNNING = {"RUNNING", "COMPLETING"}
_FORGOTTEN = ""
"""SLURM keeps jobs that have ended for some minutes only."""

_ASK_SECONDS = 3.0
_COMPLETING_SECONDS = 60.0
"""SLURM kills processes half a minute after it has asked them to end (KillWait)."""
_USERS = ("SLURM_CONF",)


def demand(trainer: DictConfig) -> Demand:
    """What each node of a job with this ``trainer`` node needs.

    Raises:
        UserError: ``trainer.devices`` is no number: which devices a node has is not known here.
    """
    if type(trainer.devices) is not int or trainer.devices < 1:
        raise UserError(
            f"hardware=slurm needs the number of devices of each node, such as trainer.devices=4, got "
            f"{trainer.devices!r}."
        )
    return Demand(trainer.devices, gpus=trainer.devices if trainer.accelerator in ("gpu", "cuda") else 0)


@dataclass
class Attempt:
    """What SLURM runs on each node of a job, and again when the job is requeued: it then goes on.

    Attributes:
        demand: of each node.
        threads: of each process.
        config_dirs: options of the command line that name configuration directories.
    """

    job: Job
    demand: Demand
    threads: int
    config_dirs: list[str]

    def __call__(self) -> None:
        """Runs the ranks of this node.

        Raises:
            RuntimeError: they have failed.
        """
        place = submitit.JobEnvironment()
        rendezvous = ["--standalone"]
        if place.num_nodes > 1:
            # Jobs that share a node must not share the port.
            port = 20_000 + int(place.raw_job_id) % 20_000
            head = place.hostnames[0]
            rendezvous = [f"--nnodes={place.num_nodes}", f"--node-rank={place.node}"]
            rendezvous += [f"--master-addr={head}", f"--master-port={port}"]
        asked_to_end: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: asked_to_end.append(number))
        console = self.job.directory / (CONSOLE if place.node == 0 else f"node{place.node}-{CONSOLE}")
        tree = ProcessTree(
            # Also one rank: in SLURM without torchrun, Lightning would save in the middle of a step, and requeue.
            command(self.job, torchrun(self.demand.processes, rendezvous), self.config_dirs),
            environment(os.environ, self.demand, Share((), 0), self.threads, alone=False),
            console,
        )
        try:
            while (how := tree.ended()) is None:
                time.sleep(0.2)
            # SLURM requeues a job that it preempts, unless that ends by itself in the time it is given for that.
            while how and asked_to_end:
                time.sleep(1)
        finally:
            tree.kill()  # also where submitit ends this process to requeue the job
        if how:
            raise RuntimeError(f"ended with {how}; see {console}")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit has SLURM run next, after a preemption or at the time limit: the same."""
        return DelayedSubmission(self)


class Queue:
    """What SLURM says of our jobs, asked at most every few seconds and for all of them at once."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._asked = 0.0

    def watch(self, number: str) -> None:
        """From now on, ``state`` knows this job."""
        self._states[number] = "PENDING"

    def state(self, number: str) -> str:
        """A state of SLURM, or "" where SLURM has forgotten the job, which it does some minutes after its end."""
        if time.monotonic() - self._asked >= _ASK_SECONDS:
            self.ask()
        return self._states[number]

    def ask(self) -> None:
        """Asks SLURM now. Where it does not answer, as while its controller starts, all stays as it was."""
        line = ["squeue", f"--user={os.getuid()}", "--noheader", "--states=all", "--format=%A %T"]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        except subprocess.SubprocessError as error:
            log.warning("SLURM does not answer, asking again: %s %s", error, getattr(error, "stderr", None) or "")
        else:
            found: dict[str, str] = dict(row.split() for row in done.stdout.splitlines())
            self._states = {number: found.get(number, _FORGOTTEN) for number in self._states}
        self._asked = time.monotonic()

    def wait_while_completing(self, number: str) -> None:
        """Asks until SLURM has ended the processes of a job that it is ending, for a minute at most.

        What such a job was is decided: taken for a running one, it would be waited for, and be found interrupted.
        """
        deadline = time.monotonic() + _COMPLETING_SECONDS
        self.ask()
        while self._states[number] == "COMPLETING" and time.monotonic() < deadline:
            time.sleep(_ASK_SECONDS)
            self.ask()


@dataclass
class SlurmJob:
    """A job in SLURM's queue.

    Attributes:
        number: SLURM's.
        directory: the job's.
        folder: submitit's.
    """

    number: str
    directory: Path
    folder: Path
    queue: Queue

    def state(self) -> str:
        return "running" if self.queue.state(self.number) in _RUNNING else "queued"

    def ended(self) -> str | None:
        """How it ended, in words, "" for well; None while it has not."""
        state = self.queue.state(self.number)
        if state not in _ENDED and state != _FORGOTTEN:
            return None
        # Makes NFS look at the directory anew: another machine has written there.
        self.directory.chmod(self.directory.stat().st_mode)
        if state in ("COMPLETED", _FORGOTTEN):
            return ""
        return f"SLURM state {state}, see {self.folder}/{self.number}_*"

    def interrupt(self) -> None:
        """Takes it out of the queue."""
        subprocess.run(["scancel", self.number], check=False)

    def kill(self) -> None:
        if self.ended() is None:
            self.interrupt()


def start_in_queue(folder: Path, options: dict[str, Any], max_num_timeout: int, config_dirs: Sequence[str]) -> Start:
    """Starts jobs by putting them into SLURM's queue; takes up those that an earlier sweep has left there.

    Args:
        folder: of submitit's files and SLURM's own output.
        options: of submitit's executor, for all jobs.
        max_num_timeout: how many times a job may reach its time limit and go on.
        config_dirs: options of the command line that name configuration directories.

    Raises:
        UserError: there is no SLURM here.
    """
    if shutil.which("sbatch") is None:
        raise UserError("hardware=slurm needs SLURM, and there is no sbatch here: start the sweep on a login node.")
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
        # There it is no sweep any more.
        overrides = [*job.overrides, "hydra/launcher=process"]
        alone = replace(job, directory=job.directory.resolve(), overrides=overrides, config=DictConfig({}))
        attempt = Attempt(alone, demand, threads, list(config_dirs))
        cpus = demand.processes * threads
        # torchrun starts the ranks of a node, so that a failing one ends the others. srun does not heed the number of
        # CPUs that sbatch was given.
        executor.update_parameters(
            job_name=job.name,
            nodes=job.config.trainer.num_nodes,
            ntasks_per_node=1,
            cpus_per_task=cpus,
            gpus_per_node=demand.gpus or None,
            srun_args=[f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
            **options,
        )
        # Of the environment of a sweep that is itself inside a job, only what is the user's.
        given = {name: value for name, value in os.environ.items() if name in _USERS or name.startswith("SBATCH_")}
        try:
            with clean_env():
                os.environ.update(given)
                number = executor.submit(attempt).job_id
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM refuses {job.name}: {error}") from error
        write_text(job.directory / SUBMITTED, json.dumps({"job": number}) + "\n")
        queue.watch(number)
        return SlurmJob(number, job.directory, folder, queue)

    return start
