"""One sweep job = one fresh process.

Jobs that share a process leak into one another: the W&B run, the ranks' environment variables, random seeds and GPU
memory of one job are found by the next. And a distributed job inside a sweeping process starts its ranks with the
sweep's own command line, so that every rank sweeps once more for itself.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from gridlstm.errors import UserError

log = logging.getLogger(__name__)

_LEAKS = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
"""What a distributed parent would hand to a child that is to start ranks of its own."""


class ProcessLauncher(Launcher):
    """Runs the jobs of a sweep one after the other, each as ``python -m gridlstm.train`` in its own directory.

    A failing job does not stop the next; the sweep then ends with an error that names it.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if not job_overrides:
            raise UserError("this sweep has no jobs. Does a glob or a choice in it match nothing?")
        return [self._run(list(overrides), initial_job_idx + i) for i, overrides in enumerate(job_overrides)]

    def _run(self, overrides: list[str], number: int) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        directory = Path(config.hydra.sweep.dir).resolve() / str(config.hydra.sweep.subdir)
        directory.mkdir(parents=True, exist_ok=True)
        # Hydra's own options describe the sweep; the job gets its directory and the choice of config directory.
        options = [*filter_overrides(overrides), f"hydra.run.dir='{directory}'"]
        command = [sys.executable, "-m", "gridlstm.train", *self._config_dirs(), *options]
        log.info("job %d: %s -> %s", number, " ".join(filter_overrides(overrides)), directory)
        environment = {name: value for name, value in os.environ.items() if name not in _LEAKS}
        status = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
        result = JobReturn(overrides=overrides, cfg=config, hydra_cfg=config, working_dir=str(directory))
        result.status = JobStatus.COMPLETED if status == 0 else JobStatus.FAILED
        if status == 0:
            result.return_value = json.loads((directory / "result.json").read_text())["score"]
        else:
            log.error("job %d failed with exit status %d", number, status)
            result.return_value = UserError(f"job {number} of the sweep failed: see {directory}/train.log")
        return result

    def _config_dirs(self) -> list[str]:
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":
                return ["--config-dir", source.path]
        return []
