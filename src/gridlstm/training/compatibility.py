"""Compare the options of this run and of the run that wrote a checkpoint."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError
from gridlstm.options import FIXED, Role, chosen, leaves
from gridlstm.training.stored import read_config


def check_resume(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuse to resume with other options than the checkpoint's run: its optimizer state would silently override them.

    Raises:
        UserError: options differ; the message lists them.
    """
    if (directory := run_directory(checkpoint)) is None:
        return
    if cfg.trainer.overfit_batches and "fit" in cfg.stages:
        raise UserError(
            f"trainer.overfit_batches={cfg.trainer.overfit_batches} repeats the first batches of a training, but a "
            f"resumed training starts with later ones. Start a new run, without ckpt_path."
        )
    now, then = _both(cfg, directory, FIXED)
    if _ends_with(now.get("init_from"), then.get("init_from")):
        now["init_from"] = then["init_from"]
    differences = _differences(now, then)
    if differences and "fit" not in cfg.stages:
        raise UserError(
            f"the test of {directory} must use the options of its config.yaml, but these differ:\n  "
            + "\n  ".join(differences)
            + "\nUse python -m gridlstm.evaluate, or another hydra.run.dir, for other options."
        )
    if differences:
        raise UserError(
            f"{checkpoint} can only be resumed with the options it was trained with, but these differ:\n  "
            + "\n  ".join(differences)
            + "\nRemove them or restore their values (trainer.max_steps and trainer.max_time may grow, and stretch a "
            "schedule), or start a new run."
        )


def differences_of_end(cfg: DictConfig, directory: Path) -> list[str]:
    """Return the options that determine the end of training and differ from the run in a directory."""
    now, then = _both(cfg, directory, {Role.LENGTH, Role.TRAINING})
    return sorted(key for key in {*now, *then} if now.get(key) != then.get(key))


def differences_of_result(cfg: DictConfig, directory: Path) -> list[str]:
    """Return the options of training that have another value in the run of a directory.

    An option that only one of them has does not count: the run may have chosen it, or an older version lacked it.
    """
    now, then = _both(cfg, directory, FIXED | {Role.LENGTH})
    common = now.keys() & then.keys()
    return _differences(*({key: options[key] for key in options if key in common} for options in (now, then)))


def other_network(cfg: DictConfig, checkpoint: Path) -> list[str]:
    """Return the model options that differ from the checkpoint's run: its weights may compute something else."""
    if (directory := run_directory(checkpoint)) is None:
        return []
    now, then = (_models(options) for options in _both(cfg, directory, {Role.NETWORK}))
    return _differences(now, then)


def _ends_with(path: str | None, end: str | None) -> bool:
    """Return True if a path may be the same as one that was typed relative to some directory."""
    if path is None or end is None:
        return False
    parts = Path(end).expanduser().parts
    return Path(path).parts[-len(parts) :] == parts


def _models(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key.startswith("model.")}


def _both(cfg: DictConfig, directory: Path, roles: Collection[Role]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of some roles, of this run and of the run in a directory."""
    before = read_config(directory / "config.yaml")
    now, then = (chosen(dict(leaves(OmegaConf.to_container(c, resolve=True))), roles) for c in (cfg, before))
    return now, then


def _differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**now, **then} if now.get(key) != then.get(key)]
    return [f"{key}={now.get(key)!r}, in the earlier run {then.get(key)!r}" for key in keys]


def run_directory(checkpoint: Path) -> Path | None:
    """Return the run directory of a checkpoint, the nearest parent with a config.yaml; None if there is none."""
    for directory in checkpoint.resolve().parents:
        if (directory / "config.yaml").is_file():
            return directory
    return None
