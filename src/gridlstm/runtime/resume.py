"""Where a run goes on from, and whether it may."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError
from gridlstm.options import FIXED, Role, chosen, leaves
from gridlstm.runtime.intact import damage
from gridlstm.runtime.legs import CHECKPOINTS, intact_checkpoint, last_checkpoint
from gridlstm.runtime.stored import read_config


def resume_from(cfg: DictConfig) -> Path | None:
    """The checkpoint that ``ckpt_path`` names; for "last" this run's own last one, None where there is none."""
    if cfg.ckpt_path is None:
        return None
    if cfg.ckpt_path != "last":
        return Path(cfg.ckpt_path).expanduser()
    return intact_checkpoint(Path(cfg.run.dir))


def is_own(cfg: DictConfig, checkpoint: Path) -> bool:
    """Whether a checkpoint lies in the directory of this run, which then goes on there."""
    return run_directory(checkpoint) == Path(cfg.run.dir).resolve()


def check_fresh(cfg: DictConfig) -> None:
    """Refuses to begin where checkpoints of an earlier run lie, among which those of this one would be put.

    Raises:
        UserError: with what there is to do.
    """
    directory = Path(cfg.run.dir)
    if "fit" in cfg.stages and any((directory / CHECKPOINTS).glob("*.ckpt")):
        raise UserError(
            f"{directory} holds the checkpoints of an earlier run: go on with it by ckpt_path=last, delete it, or give "
            f"another hydra.run.dir."
        )


def trained_to_end(cfg: DictConfig, checkpoint: Path, earlier: Mapping[str, Any]) -> Path | None:
    """Return the best checkpoint of a run that has trained to its end, so that its test alone may be left; else None.

    Steps, a clock, a criterion or early stopping may have ended it. With other limits than then, or from a checkpoint
    that is not the last, it trains on.

    Args:
        checkpoint: that it goes on from.
        earlier: what result.json says of its legs before.

    Raises:
        UserError: callbacks are others than then, and there are no steps left in which they could do anything; or the
            checkpoint that is to be tested is damaged.
    """
    directory = Path(cfg.run.dir)
    last = last_checkpoint(directory)
    if "fit" not in cfg.stages or not earlier.get("trained_to_end"):
        return None
    if last is None or checkpoint.resolve() != last.resolve():
        return None
    now, then = _both(cfg, directory, {Role.LENGTH, Role.TRAINING})
    different = sorted(key for key in {*now, *then} if now.get(key) != then.get(key))
    if any(key.startswith("trainer.max_") for key in different):
        return None
    if rules := [key for key in different if key.startswith("callbacks.")]:
        if 0 < cfg.trainer.max_steps <= earlier["steps"]:
            raise UserError(
                f"training had ended at step {earlier['steps']}, and {rules[0]} is not what it was: give "
                f"a larger trainer.max_steps to train on, or leave it as it was."
            )
        return None
    best = earlier.get("best", {})
    if cfg.task.monitor not in best or not best.get("checkpoint"):
        return None
    weights = directory / CHECKPOINTS / Path(best["checkpoint"]).name  # wherever the directory has moved to
    if not weights.is_file():
        return None
    if "test" in cfg.stages and (reason := damage(weights)) is not None:
        raise UserError(
            f"{weights} cannot be read: {reason}. The test that is left of this run needs it: restore it from a copy, "
            f"or test the last weights by stages=[test] ckpt_path=last."
        )
    return weights


def check_resume(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuses to go on with other options than the checkpoint's run: its optimiser's state would silently win.

    Raises:
        UserError: naming every option that differs.
    """
    if ("fit" not in cfg.stages and not is_own(cfg, checkpoint)) or (directory := run_directory(checkpoint)) is None:
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
            + "\nLeave them as they were (trainer.max_steps and trainer.max_time may grow, and a schedule "
            "stretches with them), or start a new run."
        )


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
    """The run directory that a checkpoint lies in: the nearest with a config.yaml; None outside of any."""
    for directory in checkpoint.resolve().parents:
        if (directory / "config.yaml").is_file():
            return directory
    return None
