"""The record of a run directory: config.yaml at the start, result.json at the end, whatever the end was."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils._pytree import tree_leaves

from gridlstm.atomic import write_text
from gridlstm.runtime import provenance
from gridlstm.runtime.build import Run

log = logging.getLogger(__name__)


class Record:
    """Collects what result.json holds.

    ``fields`` goes into the file as it is; ``write`` may be called again and again.
    """

    def __init__(self, dir: Path, cfg: DictConfig) -> None:
        self.dir = dir
        self.start = time.monotonic()
        self.fields: dict[str, Any] = {
            "status": "running",
            "task": cfg.run.task,
            "model": cfg.run.model,
            "experiment": cfg.run.group,
            "seed": cfg.seed,
            "monitor": cfg.task.monitor,
        }

    def write(self) -> None:
        """Writes result.json, on rank zero."""
        self.fields["seconds"] = round(time.monotonic() - self.start, 3)
        if provenance.rank() == 0:
            write_text(self.dir / "result.json", json.dumps(self.fields, indent=2, default=_plain) + "\n")


@contextmanager
def recording(cfg: DictConfig) -> Iterator[Record]:
    """Writes config.yaml, yields the record, and writes result.json with status completed, interrupted or failed."""
    directory = Path(cfg.run.dir)
    record = Record(directory, cfg)
    if provenance.rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        # Resolved and without the launcher's own node, so that it means the same in any other process.
        write_text(directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    record.write()
    try:
        yield record
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        if interrupted and (directory / "checkpoints" / "last.ckpt").exists():
            log.info("interrupted. Go on with the same command and ckpt_path=last hydra.run.dir=%s", directory)
        record.fields |= {
            "status": "interrupted" if interrupted else "failed",
            "error": f"{type(error).__name__}: {error}",
        }
        record.write()
        raise
    record.fields["status"] = "completed"
    record.write()


def describe(run: Run) -> dict[str, Any]:
    """Sizes of the model and where it computes."""
    task, device = run.task, run.trainer.strategy.root_device
    return {
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
        "state_size": sum(leaf.numel() for leaf in tree_leaves(task.model.initial_state(1))),
        "batch_size": run.data.batch_size,
        "processes": run.trainer.world_size,
        **provenance.describe(device),
    }


def metrics(run: Run) -> dict[str, float]:
    """The latest value of every metric, training and validation."""
    latest = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    return {**run.task.latest, **latest}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return str(value)
