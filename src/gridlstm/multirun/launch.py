"""Run the jobs of a sweep, as many at once as fit on the machine, each in its own process tree."""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from gridlstm.config import as_typed
from gridlstm.errors import UserError
from gridlstm.multirun.devices import Demand, Pool, Share
from gridlstm.multirun.estimate import announce
from gridlstm.multirun.jobs import Job
from gridlstm.multirun.process_tree import last_line
from gridlstm.multirun.start import CONSOLE, Process, Start, environment
from gridlstm.multirun.table import LiveTable, Row

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SHOW_SECONDS = 1.0
_GRACE_SECONDS = 15.0
"""Seconds between the request to end and the kill. A rank that waits in a collective does not see the request."""


@dataclass
class _Running:
    job: Job
    share: Share
    process: Process
    start: float = field(default_factory=time.monotonic)


class Launch:
    """One batch of jobs.

    Args:
        root: sweep directory.
        jobs: jobs with the resources that each needs.
        pool: free resources.
        start: function that starts a job.
    """

    def __init__(self, root: Path, jobs: Sequence[tuple[Job, Demand]], pool: Pool, start: Start) -> None:
        self.root = root
        self.pool = pool
        self.start = start
        self.waiting = [(job, demand) for job, demand in jobs if not job.completed()]
        self.running: list[_Running] = []
        shared = set.intersection(*(set(job.overrides) for job, _ in jobs))
        self.rows = {
            job.name: Row(
                job.name,
                point=" ".join(override for override in job.overrides if override not in shared),
                state="skipped" if job.completed() else "waiting",
            )
            for job, _ in jobs
        }
        for job, _ in jobs:
            if job.completed():
                self.rows[job.name].best = job.result()["score"]
        self.threads = {job.name: pool.threads_of(demand, len(self.waiting)) for job, demand in self.waiting}
        self.at_once = self._room()
        metric = jobs[0][0].config.task.monitor
        self.table = LiveTable(metric, self.at_once)

    def estimate(self) -> None:
        """Log how long a long sweep will take.

        Raises:
            SystemExit: the sweep was interrupted.
        """
        # All kinds of jobs are measured with the share of the one that needs most.
        demand = max(
            (each for _, each in self.waiting), key=lambda each: (each.chosen, each.gpus, each.processes), default=None
        )
        if demand is not None and (share := self.pool.take(demand, threads := max(self.threads.values()))):
            self.pool.give_back(share)
            variables = environment(os.environ, demand, share, threads, self._alone(demand, threads))
            with _interruption() as interrupted:
                announce(self.waiting, self.at_once, variables, interrupted)
            self._exit_if(interrupted)

    def run(self) -> None:
        """Run all jobs, whether they fail or not; each result.json says how its job ended.

        Raises:
            SystemExit: the sweep was interrupted. All processes of all jobs have ended by then.
        """
        skipped = len(self.rows) - len(self.waiting)
        log.info(
            "%d job%s%s, %d at once",
            len(self.waiting),
            "" if len(self.waiting) == 1 else "s",
            f" ({skipped} more were completed earlier)" if skipped else "",
            self.at_once,
        )
        shown = 0.0
        with _interruption() as interrupted, self.table.below_the_log():
            try:
                while (self.waiting or self.running) and not interrupted:
                    self._start_what_fits()
                    ended = self._collect()
                    if ended or time.monotonic() - shown >= _SHOW_SECONDS:
                        shown = time.monotonic()
                        self._show()
                    time.sleep(_POLL_SECONDS)
            finally:
                # Also after an error in this loop: no job outlives its sweep.
                self._stop(interrupted)
        self._show()
        self._exit_if(interrupted)

    def _exit_if(self, interrupted: Sequence[int]) -> None:
        if not interrupted:
            return
        open_jobs = sum(row.state not in ("completed", "skipped") for row in self.rows.values())
        log.error(
            "interrupted: %d of %d jobs are not completed. To resume, repeat the command with %s",
            open_jobs,
            len(self.rows),
            as_typed("hydra.sweep.dir", self.root),
        )
        sys.exit(128 + interrupted[0])

    def _alone(self, demand: Demand, threads: int) -> bool:
        """Return True if no other job can run beside one."""
        return self.at_once == 1 and (bool(demand.gpus) or threads * demand.processes >= self.pool.cores)

    def _room(self) -> int:
        """Return how many of the first jobs can start at once."""
        shares = []
        for job, demand in self.waiting:
            if (share := self.pool.take(demand, self.threads[job.name])) is None:
                break
            shares.append(share)
        for share in shares:
            self.pool.give_back(share)
        return len(shares)

    def _start_what_fits(self) -> None:
        while self.waiting:
            job, demand = self.waiting[0]
            if (share := self.pool.take(demand, self.threads[job.name])) is None:
                return
            self.waiting.pop(0)
            try:
                threads = self.threads[job.name]
                process = self.start(job, demand, share, threads, self._alone(demand, threads))
            except UserError as error:  # SLURM refuses this job; the others continue
                self.pool.give_back(share)
                job.record_end("failed", str(error))
                self.rows[job.name].state = "failed"
                continue
            self.running.append(_Running(job, share, process))
            self.rows[job.name].state = process.state()

    def _collect(self) -> bool:
        """Record the jobs that have ended; return True if any has."""
        ended = [(running, how) for running in self.running if (how := running.process.ended()) is not None]
        for running, how in ended:
            self.running.remove(running)
            self.pool.give_back(running.share)
            self._note_end(running, how)
        return bool(ended)

    def _note_end(self, running: _Running, how: str) -> None:
        job, row = running.job, self.rows[running.job.name]
        if how and job.completed():
            # The result is written. Ranks may still make each other fail while they exit.
            log.warning("%s was completed, but then ended with %s; see %s", job.name, how, job.directory / CONSOLE)
        elif how and job.result().get("status") not in ("failed", "interrupted"):
            job.record_end("failed", f"ended with {how}: {last_line(job.directory / CONSOLE) or 'it printed nothing'}")
        elif not how and not job.completed() and job.result().get("status") not in ("failed", "interrupted"):
            job.record_end("failed", "ended with exit status 0 but left no score in result.json")
        result = job.result()
        row.state, row.seconds, row.best = result["status"], time.monotonic() - running.start, result.get("score")
        row.seconds_left = None

    def _stop(self, interrupted: Sequence[int]) -> None:
        """Interrupt the running jobs, wait, then kill them. A second Ctrl-C skips the wait."""
        stopped = list(self.running)
        for running in stopped:
            running.process.interrupt()
        deadline = time.monotonic() + _GRACE_SECONDS
        while len(interrupted) < 2 and time.monotonic() < deadline:
            if all(running.process.ended() is not None for running in stopped):
                break
            time.sleep(_POLL_SECONDS)
        for running in stopped:
            running.process.kill()  # if the command has ended, kills only processes that it left behind
        for running in stopped:
            self.running.remove(running)
            row = self.rows[running.job.name]
            if running.job.completed():  # before the interrupt reached it
                row.state, row.best, row.seconds_left = "completed", running.job.result()["score"], None
                continue
            row.state = "interrupted"
            if running.job.result().get("status") != "interrupted":
                running.job.record_end("interrupted", "the sweep was interrupted")

    def _show(self) -> None:
        for running in self.running:
            row, progress = self.rows[running.job.name], running.job.progress()
            row.state = running.process.state()
            if row.state == "queued":
                running.start = time.monotonic()
            row.seconds = time.monotonic() - running.start
            if progress:
                last = progress["last_step"]
                row.step = f"{progress['step']}/{last}" if last else str(progress["step"])
                row.best, row.seconds_left = progress["best"], progress["seconds_left"]
        self.table.show(list(self.rows.values()))


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP without ending the process, so that the jobs can be stopped first."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
