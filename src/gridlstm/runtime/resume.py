"""Where a run goes on from, and whether it may."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError
from gridlstm.runtime.legs import CHECKPOINTS, last_checkpoint

# Where a run finds things, how it computes and how much it evaluates may change on a resume.
_FREE = {
    "model": {"sweep"},
    "task.data": {"path", "name", "data_dir", "url", "cache_dir", "num_test", "test_digits", "val_symbols"},
    "task.objective": set[str](),
    "optimizer": set[str](),
    "scheduler": set[str](),
    "callbacks.weight_averaging": set[str](),
}

_OF_TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")
"""Options of the trainer that say how a network is trained."""


def resume_from(cfg: DictConfig) -> Path | None:
    """The checkpoint that ``ckpt_path`` names; for "last" this run's own last one, None where there is none."""
    if cfg.ckpt_path is None:
        return None
    if cfg.ckpt_path != "last":
        return Path(cfg.ckpt_path).expanduser()
    return last_checkpoint(Path(cfg.run.dir))


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
    """The best checkpoint of a run whose training has come to its end, so that its test alone may be left; else None.

    Steps, a clock or a criterion may have ended it. With other limits than then, or from a checkpoint that is not the
    last, it trains on.

    Args:
        checkpoint: that it goes on from.
        earlier: what result.json says of its legs before.

    Raises:
        UserError: callbacks are others than then, and there are no steps left in which they could do anything.
    """
    directory = Path(cfg.run.dir)
    last = last_checkpoint(directory)
    if not earlier.get("trained_to_end") or last is None or checkpoint.resolve() != last.resolve():
        return None
    before = OmegaConf.load(directory / "config.yaml")
    if any(cfg.trainer[name] != before.trainer.get(name) for name in ("max_steps", "max_epochs", "max_time")):
        return None
    now, then = _rules(cfg.callbacks), _rules(before.callbacks)
    if different := [name for name in {**now, **then} if now.get(name) != then.get(name)]:
        if 0 < cfg.trainer.max_steps <= earlier["steps"]:
            raise UserError(
                f"training had ended at step {earlier['steps']}, and callbacks.{different[0]} is not what it was: give "
                f"a larger trainer.max_steps to train on, or leave it as it was."
            )
        return None
    best = earlier.get("best", {})
    if "test" not in cfg.stages or cfg.task.monitor not in best or not best.get("checkpoint"):
        return None
    weights = directory / CHECKPOINTS / Path(best["checkpoint"]).name  # wherever the directory has moved to
    return weights if weights.is_file() else None


def _rules(callbacks: Any) -> dict[str, Any]:
    """Options of callbacks but where and how often they write."""
    free = ("dir", "dirpath", "every_seconds", "verbose")
    return {name: value for name, value in _flat(callbacks).items() if name.rpartition(".")[2] not in free}


def check_resume(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuses to go on with other options than the checkpoint's run: its optimiser's state would silently win.

    Raises:
        UserError: naming every option that differs.
    """
    if ("fit" not in cfg.stages and not is_own(cfg, checkpoint)) or (directory := run_directory(checkpoint)) is None:
        return
    before = OmegaConf.load(directory / "config.yaml")
    differences = [f"seed={cfg.seed}, there {before.seed}"] if before.seed != cfg.seed else []
    for node, free in _FREE.items():
        now, then = _flat(OmegaConf.select(cfg, node)), _flat(OmegaConf.select(before, node))
        differences += [
            f"{node}.{name}={now.get(name)!r}, there {then.get(name)!r}"
            for name in {**now, **then}
            if now.get(name) != then.get(name) and name.split(".")[0] not in free
        ]
    differences += [
        f"trainer.{name}={cfg.trainer[name]!r}, there {before.trainer.get(name)!r}"
        for name in _OF_TRAINER
        if cfg.trainer[name] != before.trainer.get(name)
    ]
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
    """Options of the model, as they are here and as the checkpoint's run had them, with which the same weights may
    compute something else; those of its first weights and of what training adds to it are none."""
    if (directory := run_directory(checkpoint)) is None:
        return []
    now, then = (_flat(each.model) for each in (cfg, OmegaConf.load(directory / "config.yaml")))
    return [
        f"model.{name}={now.get(name)!r}, there {then.get(name)!r}"
        for name in {**now, **then}
        if now.get(name) != then.get(name)
        and not name.endswith("regularizers")
        and name.rpartition(".")[2] not in ("sweep", "dropout", "init_bound", "gain", "transform_bias")
    ]


def run_directory(checkpoint: Path) -> Path | None:
    """The run directory that a checkpoint lies in: the nearest with a config.yaml; None outside of any."""
    for directory in checkpoint.resolve().parents:
        if (directory / "config.yaml").is_file():
            return directory
    return None


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and resolved values of a node."""
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    if not isinstance(plain, dict):
        return {} if plain is None else {prefix.rstrip("."): plain}
    return {name: value for key, child in plain.items() for name, value in _flat(child, f"{prefix}{key!s}.").items()}
