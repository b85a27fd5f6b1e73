"""Where a run goes on from, and whether it may."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError

# Where a run finds things, how it computes and how much it evaluates may change on a resume.
_FREE = {
    "model": {"sweep"},
    "task.data": {"path", "data_dir", "url", "cache_dir", "num_test", "val_symbols"},
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
        return Path(cfg.ckpt_path)
    last = Path(cfg.run.dir) / "checkpoints" / "last.ckpt"
    return last if last.exists() else None


def check_resume(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuses to go on with other options than the checkpoint's run: its optimiser's state would silently win.

    Raises:
        UserError: naming every option that differs.
    """
    if "fit" not in cfg.stages or (directory := run_directory(checkpoint)) is None:
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
    if differences:
        raise UserError(
            f"{checkpoint} goes on with the options it was trained with, and here they differ:\n  "
            + "\n  ".join(differences)
            + "\nLeave them as they were (trainer.max_steps and trainer.max_time may grow, and a schedule "
            "stretches with them), or start a new run."
        )


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
