"""Options of this run beside those of the run that wrote a checkpoint."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError
from gridlstm.options import FIXED, Role, chosen, leaves
from gridlstm.training.stored import read_config


def check_resume(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuse to continue with other options than the checkpoint's run: its optimiser's state would silently win.

    Raises:
        UserError: naming every option that differs.
    """
    if (directory := run_directory(checkpoint)) is None:
        return
    if cfg.trainer.overfit_batches and "fit" in cfg.stages:
        raise UserError(
            f"trainer.overfit_batches={cfg.trainer.overfit_batches} repeats the first batches of a training, and a "
            f"resumed one begins with others. Start a new run, without ckpt_path."
        )
    differences = _differences(*_both(cfg, directory, FIXED))
    if differences and "fit" not in cfg.stages:
        raise UserError(
            f"the test of {directory} is one of the options of its config.yaml, and here they differ:\n  "
            + "\n  ".join(differences)
            + "\nOther options are for python -m gridlstm.evaluate, or for another hydra.run.dir."
        )
    if differences:
        raise UserError(
            f"{checkpoint} goes on with the options it was trained with, and here they differ:\n  "
            + "\n  ".join(differences)
            + "\nLeave them out, or as they were (trainer.max_steps and trainer.max_time may grow, and a schedule "
            "stretches with them), or start a new run."
        )


def differences_of_end(cfg: DictConfig, directory: Path) -> list[str]:
    """Return the options of when and how a training ends that differ from those of the run in a directory."""
    now, then = _both(cfg, directory, {Role.LENGTH, Role.TRAINING})
    return sorted(key for key in {*now, *then} if now.get(key) != then.get(key))


def other_network(cfg: DictConfig, checkpoint: Path) -> list[str]:
    """Return the options of the model with which the same weights may compute something else than in their own run."""
    if (directory := run_directory(checkpoint)) is None:
        return []
    now, then = (_models(options) for options in _both(cfg, directory, {Role.NETWORK}))
    return _differences(now, then)


def _models(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key.startswith("model.")}


def _both(cfg: DictConfig, directory: Path, roles: Collection[Role]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of some roles, of this run and of the one in a directory."""
    before = read_config(directory / "config.yaml")
    now, then = (chosen(dict(leaves(OmegaConf.to_container(c, resolve=True))), roles) for c in (cfg, before))
    return now, then


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**now, **then} if now.get(key) != then.get(key)]
    return [f"{key}={now.get(key)!r}, there {then.get(key)!r}" for key in keys]


def run_directory(checkpoint: Path) -> Path | None:
    """Return the run directory that a checkpoint lies in: the nearest with a config.yaml; None outside of any."""
    for directory in checkpoint.resolve().parents:
        if (directory / "config.yaml").is_file():
            return directory
    return None
