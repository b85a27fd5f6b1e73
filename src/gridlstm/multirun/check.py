"""Refuse a sweep before it starts if it would silently differ from what the user asked for."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from gridlstm.errors import UserError
from gridlstm.multirun.jobs import Job

log = logging.getLogger(__name__)


class SweepCheck(Callback):
    """Checks a sweep before any sweeper or launcher runs.

    Hydra itself runs no job and exits with status 0 if a glob matches nothing. It also drops the sweep that an
    experiment declares if the command line sweeps over experiments.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep that cannot work.

        Raises:
            SystemExit: with the message of the UserError, because Hydra turns exceptions of a callback into warnings.
        """
        try:
            check(config)
        except UserError as error:
            raise SystemExit(f"error: {error}") from error


def check(config: DictConfig) -> None:
    """Check the overrides of a sweep.

    Raises:
        UserError: an override has no values or repeats one, the command line sweeps over experiments that declare
            sweeps, or a search would optimize in the wrong direction or ignore an option that it should search.
    """
    if (name := str(config.hydra.job.config_name)) != "train":
        raise UserError(
            f"--config-name={name} would not reach the jobs of a sweep, which use train. Write an experiment "
            f"instead (docs/extending.md) and choose that."
        )
    _refuse_wrong_direction(config)
    if config.hydra.sweeper.get("max_batch_size") and "jobs" in config.hydra.launcher:
        raise UserError(
            f"hydra.sweeper.max_batch_size={config.hydra.sweeper.max_batch_size} would end the sweep after the first "
            f"batch with a failed job. Use hydra.launcher.jobs to limit how many jobs run at once."
        )
    loader = GlobalHydra.instance().config_loader()
    # Overrides that the experiment declares, and overrides of the command line.
    declared = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*declared, *config.hydra.overrides.task])
    if "n_trials" in config.hydra.sweeper:
        _refuse_fixed_and_searched(overrides)
    for override in overrides:
        line = str(override.input_line)
        if override.is_discrete_sweep() and (twice := [v for v, n in Counter(_values(override)).items() if n > 1]):
            raise UserError(f"{line} repeats {', '.join(twice)}: equal jobs give equal results. Give each value once.")
        if override.is_discrete_sweep() and not _values(override):
            if "glob(" in line:
                raise UserError(
                    f"this sweep has no jobs: {line} matches nothing. A glob does not search subdirectories: name the "
                    f"files, as in experiment=paper/addition."
                )
            raise UserError(f"this sweep has no jobs: {line} has no values.")
        if override.key_or_group == "experiment" and override.is_discrete_sweep():
            _refuse_declared_sweeps(loader, str(config.hydra.job.config_name), _values(override))


def check_jobs(jobs: Sequence[Job]) -> None:
    """Check the configuration of every point of a sweep, as its job would.

    Raises:
        UserError: some jobs cannot work.
    """
    from gridlstm.training.validate import check as check_job  # imports torch

    wrong = []
    for job in jobs:
        try:
            with job.at_hand():
                check_job(_without_hydra(job.config))
        except UserError as error:
            wrong.append(f"{job.name}: {error}")
    if wrong:
        raise UserError("\n".join([f"{len(wrong)} of {len(jobs)} jobs cannot work, so none was started.", *wrong]))


def warn_of_changes(jobs: Sequence[Job]) -> None:
    """Warn of completed jobs whose options have changed since, for example in the experiment's file."""
    from gridlstm.training.compatibility import differences_of_result

    for job in jobs:
        if not job.completed() or not (job.directory / "config.yaml").is_file():
            continue
        try:
            with job.at_hand():
                changed = differences_of_result(_without_hydra(job.config), job.directory)
        except UserError as error:  # its config.yaml is damaged; its result may be whole
            log.warning("%s: %s", job.name, error)
            continue
        if changed:
            log.warning(
                "%s was completed with other options, and its result is kept: %s. To run it again, delete its "
                "directory, or use another hydra.sweep.dir",
                job.name,
                "; ".join(changed),
            )


def _without_hydra(config: DictConfig) -> DictConfig:
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    return config


def direction(mode: str) -> str:
    """Return Optuna's name for the ``mode`` of a task, which is "max" or "min"."""
    return {"max": "maximize", "min": "minimize"}[mode]


def _values(override: Override) -> list[str]:
    return list(override.sweep_string_iterator())


def _refuse_wrong_direction(config: DictConfig) -> None:
    asked = any(
        override.lstrip("+").startswith("hydra.sweeper.direction=") for override in config.hydra.overrides.hydra
    )
    found = config.hydra.sweeper.get("direction")
    name = getattr(found, "name", found)  # Optuna's sweeper has an enumeration
    right = direction(config.task.mode)
    if isinstance(name, str) and name != right and not asked:
        raise UserError(
            f"this search would {name} {config.task.monitor}, but task.mode is {config.task.mode}. Use "
            f"hydra/sweeper=search, which uses the direction of the task, or hydra.sweeper.direction={right}."
        )


def _refuse_fixed_and_searched(overrides: Sequence[Override]) -> None:
    """Raise UserError for an option both fixed and searched: Optuna's sweeper uses the fixed value, in any order."""
    fixed: dict[str, str] = {}
    for override in overrides:
        key, line = override.get_key_element(), str(override.input_line)
        if not override.is_sweep_override():
            fixed[key] = line
        elif key in fixed:
            raise UserError(f"{line} would not be searched, because {fixed[key]} is also given. Remove one of them.")


def _refuse_declared_sweeps(loader: Any, config_name: str, experiments: list[str]) -> None:
    for experiment in experiments:
        one = loader.load_configuration(config_name, [f"experiment={experiment}"], run_mode=RunMode.MULTIRUN)
        if params := one.hydra.sweeper.get("params"):
            raise UserError(
                f"experiment={experiment} declares a sweep ({', '.join(params)}), which a sweep over experiments would "
                f"drop. Run them one by one: python train.py -m experiment={experiment}"
            )
