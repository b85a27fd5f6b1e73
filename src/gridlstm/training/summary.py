"""Log the last lines of a run: scores, files and commands to try next."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gridlstm.training.trust import foreign_targets, trust_option

log = logging.getLogger(__name__)

_NEXT = {
    "memorization": "without memory along depth: python train.py model=stacked_lstm",
    "addition": "a stacked LSTM: python train.py task=addition model=stacked_lstm",
    "parity": "ReLU layers: python train.py experiment=paper/parity_small model=feed_forward model.tied=true",
    "text": "the same with a stacked LSTM: add model=stacked_lstm; or longer: trainer.max_time=00:01:00:00",
    **dict.fromkeys(
        ("mnist", "fashion_mnist", "cifar10", "digit_scene"), "without memory along depth: add model=grid3d_relu_depth"
    ),
    "mnist_pixels": "masked convolutions: add model=pixelcnn",
    "moving_digits": "convolutional LSTMs: add model=convlstm",
    **dict.fromkeys(
        ("enwik8", "text8", "penn_treebank", "hub"), "the same with a stacked LSTM: add model=stacked_lstm"
    ),
}
"""Commands to try after a run of a grid, by task."""


def log_summary(cfg: DictConfig, fields: Mapping[str, Any]) -> None:
    """Log the scores of a run, its directory and the commands to try next.

    Args:
        cfg: configuration of the run.
        fields: contents of its result.json.
    """
    lines = [f"{name} {value:.4g}" for name, value in fields.get("test", {}).items()]
    best = fields.get("best", {})
    if cfg.task.monitor in best:  # an earlier leg may have had another monitor
        lines.insert(0, f"best {cfg.task.monitor} {best[cfg.task.monitor]:.4g}")
    log.info("")
    log.info("done in %.0f s: %s", fields["seconds"], " | ".join(lines))
    log.info("  all files are in   %s", as_typed_path(cfg.run.dir))
    if (picture := Path(cfg.run.dir) / "learning_curve.png").exists():
        log.info("  learning curve     %s", as_typed_path(picture))
    if best.get("checkpoint"):
        foreign = foreign_targets(cfg, ("model", "task.data", "task.objective"))
        ckpt = f"ckpt={as_typed_path(best['checkpoint'])}" + (f" {trust_option(foreign)}" if foreign else "")
        log.info("  evaluate again     python -m gridlstm.evaluate %s split=test", ckpt)
        if cfg.task.monitor in ("val/bpc", "val/bpw"):
            log.info("  let it write       python -m gridlstm.sample %s", ckpt)
        if "test/bleu" in fields.get("test", {}):
            log.info('  translate          python -m gridlstm.translate %s "…"', ckpt)
    if cfg.run.model.startswith("grid"):
        log.info("  try next           %s", _NEXT.get(cfg.run.task, _NEXT["memorization"]))


def as_typed_path(path: str | Path) -> str:
    """Return a path for typing in a shell: quoted, and relative if it is below the working directory."""
    path = Path(path)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
