"""Launcher that runs each sweep job as a SLURM job, with gridlstm.multirun.slurm, which needs the extra ``slurm``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError
from hydra_plugins.gridlstm_launcher.process_launcher import ProcessLauncher

if TYPE_CHECKING:
    from gridlstm.multirun.devices import Demand, Pool
    from gridlstm.multirun.start import Start


class SlurmLauncher(ProcessLauncher):
    """Runs the jobs of a sweep in SLURM's queue, each on ``trainer.num_nodes`` nodes with ``trainer.devices`` ranks.

    Otherwise it works as ``ProcessLauncher``. A job that is preempted or reaches its time limit is requeued and resumes
    from its last checkpoint.

    Args:
        jobs: number of jobs in the queue at once; null for all.
        partition, account, qos, constraint: options of sbatch; null for the default of the cluster.
        timeout_min: time limit in minutes.
        max_num_timeout: number of times a job may reach its time limit and resume.
        signal_delay_s: seconds from the requeue of a job to its time limit.
        cpus_per_process: cores, and threads, of each rank.
        mem_gb: memory of each node; null for the default of the cluster.
        setup: shell commands before the job, such as ``module load cuda``.
        additional_parameters: other options of sbatch, such as ``{exclude: node7}``.
    """

    here = False

    def __init__(
        self,
        jobs: int | None,
        timeout_min: int,
        max_num_timeout: int,
        signal_delay_s: int,
        cpus_per_process: int,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        mem_gb: float | None = None,
        setup: Sequence[str] = (),
        additional_parameters: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(jobs)
        self.max_num_timeout = max_num_timeout
        self.cpus_per_process = cpus_per_process
        options = {
            "time": timeout_min,
            "signal_delay_s": signal_delay_s,
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "mem": None if mem_gb is None else f"{int(mem_gb * 1024)}MB",
            "setup": setup if isinstance(setup, str) else list(setup),  # text is refused below
            "additional_parameters": OmegaConf.to_container(OmegaConf.create(dict(additional_parameters or {}))),
        }
        self.options = {name: value for name, value in options.items() if value is not None}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if isinstance(lines := config.hydra.launcher.setup, str):
            raise UserError(f"hydra.launcher.setup must be a list of shell commands, got {lines!r}. Use [{lines!r}].")
        for name in ("timeout_min", "cpus_per_process"):
            value = config.hydra.launcher[name]
            if type(value) is not int or value < 1:
                raise UserError(f"hydra.launcher.{name} must be a whole number of at least 1, got {value!r}.")

    def place(self, root: Path, trainers: Sequence[DictConfig]) -> "tuple[list[Demand], Pool, Start]":
        try:
            from gridlstm.multirun.slurm import demand, start_in_queue
        except ModuleNotFoundError as error:
            raise UserError(f"hardware=slurm needs an extra ({error}). Run pip install gridlstm[slurm].") from error
        from gridlstm.config import hydra_words
        from gridlstm.multirun.devices import Pool

        demands = [demand(trainer) for trainer in trainers]
        # SLURM assigns the devices; here only the number of jobs in its queue counts.
        pool = Pool((), cores=1, jobs=self.jobs or len(trainers), threads=self.cpus_per_process)
        start = start_in_queue(root / "slurm", self.options, self.max_num_timeout, hydra_words(self.config.hydra))
        return demands, pool, start
