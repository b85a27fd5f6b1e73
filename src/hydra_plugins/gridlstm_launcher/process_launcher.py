"""Launcher that runs each sweep job in a fresh process tree.

Jobs in one process would affect each other: the next job would find the W&B run, the ranks' environment variables,
random seeds and GPU memory of the one before. A distributed job inside the process of a sweep would also start its
ranks with the command line of the sweep, so that every rank would run the whole sweep.

Hydra imports this file at every start. The work is done in gridlstm.multirun.
"""

import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from gridlstm.errors import UserError

if TYPE_CHECKING:
    from gridlstm.multirun.devices import Demand, Pool
    from gridlstm.multirun.jobs import Job
    from gridlstm.multirun.start import Start

log = logging.getLogger(__name__)

_MANY = 50
"""Smallest number of jobs whose check is announced by a log line, because it takes long."""


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep in parallel on free GPUs or cores, each as ``python -m gridlstm.train``.

    A failed job does not stop the others; the sweep then ends with an error that names it. Completed jobs in the same
    directory are not run again; started ones resume from their last checkpoint.

    Args:
        jobs: number of jobs at once; null to limit them only by free GPUs, or by cores for all their threads.
    """

    here = True
    """True if jobs run on this machine, where their cost can be measured."""

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        # Not in the constructor, whose errors Hydra wraps in three lines.
        if self.jobs is not None and (type(self.jobs) is not int or self.jobs < 1):
            raise UserError(f"hydra.launcher.jobs must be a whole number of at least 1 or null, got {self.jobs!r}.")
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra.core.utils import configure_log

        from gridlstm.files import only_writer
        from gridlstm.multirun.launch import Launch

        if not job_overrides:
            raise UserError("this sweep has no jobs. Check for a glob or choice that matches nothing.")
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        # The jobs are checked and measured with the variables that they will have.
        os.environ.update({str(name): str(value) for name, value in self.config.hydra.job.env_set.items()})
        root = Path(self.config.hydra.sweep.dir)
        points = [list(filter_overrides(overrides)) for overrides in job_overrides]
        with only_writer(root / "sweep.lock", "sweep", "hydra.sweep.dir"), _left_as_it_was(root):
            jobs, demands, pool, start = self._prepare(root, points, initial_job_idx)
            launch = Launch(root, list(zip(jobs, demands, strict=True)), pool, start)
            if self.here and initial_job_idx == 0:  # a search proposes many batches of equal jobs
                launch.estimate()
            launch.run()
        returns = self._returns(jobs)
        self._say_result(root, initial_job_idx + len(jobs), returns)
        return returns

    def _prepare(
        self, root: Path, points: Sequence[list[str]], first_number: int
    ) -> "tuple[list[Job], list[Demand], Pool, Start]":
        """Plan the jobs, check them, and write the plan to the sweep directory."""
        from gridlstm.files import write_text
        from gridlstm.multirun.check import check_jobs, warn_of_changes
        from gridlstm.multirun.jobs import plan

        if len(points) >= _MANY:
            log.info("checking %d jobs", len(points))
        planned = plan(root, points, first_number, self._compose)
        check_jobs(planned.jobs)
        warn_of_changes(planned.jobs)
        demands, pool, start = self.place(root, [job.config.trainer for job in planned.jobs])
        planned.write(root)
        if not (root / "multirun.yaml").exists():  # it marks a sweep, but not every sweeper writes it
            write_text(root / "multirun.yaml", OmegaConf.to_yaml(self.config))
        if trials := self.config.hydra.sweeper.get("n_trials"):
            log.info("trials %d to %d of %d", first_number + 1, first_number + len(points), trials)
        if first_number == 0:
            log.info("sweep directory: %s", root)
            if planned.left and not trials:
                log.info("not part of this sweep and not completed: %s", ", ".join(planned.left))
        return planned.jobs, demands, pool, start

    def place(self, root: Path, trainers: Sequence[DictConfig]) -> "tuple[list[Demand], Pool, Start]":
        """Return the demands of jobs with these ``trainer`` nodes, the free resources and a function to start a job."""
        from gridlstm.config import hydra_words
        from gridlstm.machine import cores
        from gridlstm.multirun.devices import Pool, demand, threads, visible_gpus
        from gridlstm.multirun.start import start_here

        gpus = visible_gpus(trainers)
        demands = [demand(trainer, len(gpus)) for trainer in trainers]
        return demands, Pool(gpus, cores(), self.jobs, threads()), start_here(hydra_words(self.config.hydra))

    def _compose(self, overrides: list[str], number: int) -> tuple[DictConfig, str]:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return config, str(config.hydra.sweep.subdir)

    def _returns(self, jobs: "Sequence[Job]") -> list[JobReturn]:
        """Return the results for the sweeper: each job's score, or an error that names all failures."""
        from gridlstm.multirun.start import CONSOLE

        failures = [
            f"{job.directory}: {job.result()['error'].splitlines()[0]}\n  {' '.join(job.overrides)}\n"
            f"  full output: {job.directory / CONSOLE}"
            for job in jobs
            if not job.completed()
        ]
        error = UserError(f"{len(failures)} of {len(jobs)} jobs failed.\n" + "\n".join(failures))
        returns = []
        for job in jobs:
            result = JobReturn(overrides=job.overrides, cfg=job.config, working_dir=str(job.directory))
            result.status = JobStatus.COMPLETED if job.completed() else JobStatus.FAILED
            result.return_value = job.result()["score"] if job.completed() else error
            returns.append(result)
        return returns

    def _say_result(self, root: Path, jobs_so_far: int, returns: Sequence[JobReturn]) -> None:
        """Log the command for tables; between the batches of a search, the best score so far.

        Raises:
            UserError: all trials of a search failed, so Optuna has no best one.
        """
        from gridlstm.multirun.jobs import best_of

        trials = self.config.hydra.sweeper.get("n_trials", 0)
        best = best_of(root, self.config.task.mode) if trials else None
        if jobs_so_far >= trials:
            log.info("tables and curves: python -m gridlstm.report %s", shlex.quote(str(root)))
            if trials and best is None:
                returns[0].return_value  # noqa: B018  # it raises
        elif best:
            log.info("best %s so far: %.4g, %s", self.config.task.monitor, *best)


@contextmanager
def _left_as_it_was(root: Path) -> Iterator[None]:
    """Remove the sweep directory if no job was planned there, because Hydra creates it before any check."""
    try:
        yield
    finally:
        if {path.name for path in root.iterdir()} <= {"multirun.yaml", "sweep.lock"}:
            for path in root.iterdir():
                path.unlink()
            root.rmdir()
