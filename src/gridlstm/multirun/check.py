"""Sweeps that would silently be another sweep than was asked for are refused before they begin."""

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


class SweepCheck(Callback):
    """Runs before any sweeper or launcher, whichever they are.

    Hydra itself runs no job and exits with status 0 where a glob matches nothing, and drops the sweep that an
    experiment declares when the experiment is itself swept over.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuses the sweep.

        Raises:
            SystemExit: with the message of the user's error. Hydra makes a warning of any exception of a callback.
        """
        try:
            check(config)
        except UserError as error:
            raise SystemExit(f"error: {error}") from error


def check(config: DictConfig) -> None:
    """Checks the overrides of a sweep.

    Raises:
        UserError: one of them has no values, or one twice, they sweep over experiments that declare sweeps, or a search
            would go against the task's metric or leave out what it is to search.
    """
    if (name := str(config.hydra.job.config_name)) != "train":
        raise UserError(
            f"--config-name={name} would not reach the jobs of a sweep, which are composed from train: make an "
            f"experiment of it (docs/extending.md) and choose that."
        )
    _refuse_wrong_direction(config)
    if config.hydra.sweeper.get("max_batch_size") and "jobs" in config.hydra.launcher:
        raise UserError(
            f"hydra.sweeper.max_batch_size={config.hydra.sweeper.max_batch_size} would end the sweep after the first "
            f"batch with a failed job. Limit how many run at once by hydra.launcher.jobs instead."
        )
    loader = GlobalHydra.instance().config_loader()
    # Of the command line, and those that the experiment declares.
    declared = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*declared, *config.hydra.overrides.task])
    if "n_trials" in config.hydra.sweeper:
        _refuse_fixed_and_searched(overrides)
    for override in overrides:
        line = str(override.input_line)
        if override.is_discrete_sweep() and (twice := [v for v, n in Counter(_values(override)).items() if n > 1]):
            raise UserError(f"{line} names {', '.join(twice)} more than once: a job that is repeated finds the same.")
        if override.is_discrete_sweep() and not _values(override):
            if "glob(" in line:
                raise UserError(
                    f"this sweep has no jobs: {line} matches nothing. A glob does not descend into directories: name "
                    f"the files, as in experiment=paper/addition."
                )
            raise UserError(f"this sweep has no jobs: {line} has no values.")
        if override.key_or_group == "experiment" and override.is_discrete_sweep():
            _refuse_declared_sweeps(loader, str(config.hydra.job.config_name), _values(override))


def check_jobs(jobs: Sequence[Job]) -> None:
    """Checks what the points of a sweep compose to, as each job would itself.

    Raises:
        UserError: some of them cannot work.
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


def _without_hydra(config: DictConfig) -> DictConfig:
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    return config


def direction(mode: str) -> str:
    """What Optuna calls the ``mode`` of a task: "max" or "min"."""
    return {"max": "maximize", "min": "minimize"}[mode]


def _values(override: Override) -> list[str]:
    return list(override.sweep_string_iterator())


def _refuse_wrong_direction(config: DictConfig) -> None:
    asked = any(
        override.lstrip("+").startswith("hydra.sweeper.direction=") for override in config.hydra.overrides.hydra
    )
    found = config.hydra.sweeper.get("direction")
    name = getattr(found, "name", found)  # of an enumeration of Optuna's sweeper
    right = direction(config.task.mode)
    if isinstance(name, str) and name != right and not asked:
        raise UserError(
            f"this search would {name} {config.task.monitor}, whose mode is {config.task.mode}. Use "
            f"hydra/sweeper=search, which takes the task's direction, or give hydra.sweeper.direction={right}."
        )


def _refuse_fixed_and_searched(overrides: Sequence[Override]) -> None:
    """Optuna's sweeper takes the fixed value whichever comes last."""
    fixed: dict[str, str] = {}
    for override in overrides:
        key, line = override.get_key_element(), str(override.input_line)
        if not override.is_sweep_override():
            fixed[key] = line
        elif key in fixed:
            raise UserError(f"{line} would not be searched, because {fixed[key]} is given too: leave out one of them.")


def _refuse_declared_sweeps(loader: Any, config_name: str, experiments: list[str]) -> None:
    for experiment in experiments:
        one = loader.load_configuration(config_name, [f"experiment={experiment}"], run_mode=RunMode.MULTIRUN)
        if params := one.hydra.sweeper.get("params"):
            raise UserError(
                f"experiment={experiment} declares a sweep of its own ({', '.join(params)}), which would be lost in a "
                f"sweep over experiments. Run them one by one: python train.py -m experiment={experiment}"
            )
