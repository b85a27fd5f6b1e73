"""Record of a run: config.yaml at the start and result.json at the end, however it ends."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from glob import escape
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from gridlstm.config import as_typed
from gridlstm.errors import UserError
from gridlstm.files import only_writer, read_json, to_json, write_text
from gridlstm.training import provenance
from gridlstm.training.arguments import to_keep
from gridlstm.training.build import Run
from gridlstm.training.legs import last_checkpoint
from gridlstm.training.plan import Plan

log = logging.getLogger(__name__)

_RECORD_SECONDS = 60.0
"""Seconds for which a failed rank waits for rank zero to write the record; loggers need less to finish."""


class Record:
    """Contents of result.json.

    ``fields`` is written as it is, and ``write`` may be called repeatedly. A run that continues in its directory keeps
    the records of earlier legs until newer values replace them; seconds add up.
    """

    def __init__(self, dir: Path, cfg: DictConfig, plan: Plan) -> None:
        self.dir = dir
        self.start = time.monotonic()
        self.refused = True
        """True until the run has been built. A refused run leaves the record of earlier legs unchanged."""
        self.config_written = False
        """True if this leg has written config.yaml."""
        self.earlier = plan.earlier
        before = read_json(dir / "result.json") if plan.continues else {}
        self._ended: dict[str, Any] = {name: before[name] for name in ("status", "error") if name in before}
        self.fields: dict[str, Any] = {
            **self.earlier,
            "status": "running",
            "task": cfg.run.task,
            "model": cfg.run.model,
            "experiment": cfg.run.group,
            "seed": cfg.seed,
            "monitor": cfg.task.monitor,
            "legs": plan.leg if plan.trains or plan.tests else plan.earlier.get("legs", 1),
        }

    def write(self) -> None:
        """Write result.json on rank zero."""
        self.fields["seconds"] = round(self.earlier.get("seconds", 0) + time.monotonic() - self.start, 3)
        self._write(self.fields)

    def write_back(self) -> None:
        """Write the record of the earlier legs back."""
        self._write(dict(self.earlier) | self._ended)

    def _write(self, fields: Mapping[str, Any]) -> None:
        if provenance.rank() == 0:
            write_text(self.dir / "result.json", to_json(fields, indent=2, default=_plain) + "\n")


def write_config(cfg: DictConfig) -> None:
    """Write config.yaml, with resolved references, and config_source.yaml, with unresolved ones.

    Later commands can change options of the second file: task.path then changes everything that refers to it.
    """
    source = cfg.copy()
    paths = _make_absolute(source)
    named = cast(dict[str, Any], OmegaConf.to_container(cfg.run, resolve=True))
    source.run = OmegaConf.create(named | {"arguments": to_keep(source, paths)})
    for name, node, resolve in (("config_source.yaml", source, False), ("config.yaml", cfg, True)):
        write_text(Path(cfg.run.dir) / name, OmegaConf.to_yaml(node, resolve=resolve))


def _make_absolute(source: DictConfig) -> list[str]:
    """Make the paths of a configuration absolute, because a later command may have another working directory.

    Returns:
        The options that may name a path.
    """
    options = ["task.path", "data_dir", "init_from", "task.data.cache_dir"]
    # Others name a path only if there is such a file: a data set of the hub or a directory, the beginning of the names
    # of parallel files, and lists of them.
    found = {"task.name": os.path.isdir, "task.pairs": _begins_a_file, "task.test_pairs": _begins_a_file}
    found |= dict.fromkeys(("report.points", "report.curve"), os.path.isfile)
    for name, is_path in found.items():
        if isinstance(path := OmegaConf.select(source, name), str) and is_path(os.path.expanduser(path)):
            options.append(name)
    for name in options:
        if isinstance(path := OmegaConf.select(source, name), str):
            OmegaConf.update(source, name, _absolute(path))
    for name in (f"task.data.source.{split}" for split in ("train", "val", "test")):
        node = OmegaConf.select(source, name)
        files = cast(list[Any], OmegaConf.to_container(node, resolve=False)) if isinstance(node, ListConfig) else []
        if any(map(_is_file, files)):
            OmegaConf.update(source, name, [_absolute(file) if _is_file(file) else file for file in files])
            options.append(name)
    return options


def _begins_a_file(path: str) -> bool:
    return any(Path(path).parent.glob(f"{escape(Path(path).name)}.*"))


def _is_file(name: Any) -> bool:
    return isinstance(name, str) and os.path.isfile(os.path.expanduser(name))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


@contextmanager
def recording(cfg: DictConfig, plan: Plan) -> Iterator[Record]:
    """Yield the record, and write result.json with status completed, interrupted or failed.

    Raises:
        UserError: another run is using the directory.
    """
    directory = Path(cfg.run.dir)
    alone = only_writer(directory / ".lock", "run", "hydra.run.dir") if provenance.rank() == 0 else nullcontext()
    with alone, _recording(cfg, directory, plan) as record:
        yield record


@contextmanager
def _recording(cfg: DictConfig, directory: Path, plan: Plan) -> Iterator[Record]:
    record = Record(directory, cfg, plan)
    if provenance.rank() == 0 and not (directory / "config.yaml").exists():
        write_config(cfg)  # for a run that cannot be built; a file of an earlier leg is kept for now
        record.config_written = True
    record.write()
    if provenance.rank() == 0:
        (directory / "progress.json").unlink(missing_ok=True)  # the record includes the seconds of the earlier leg
    else:
        _error_of_this_rank(directory).unlink(missing_ok=True)  # left by the earlier leg
    try:
        yield record
    except BaseException as error:
        failed = status_after(error) == "failed"
        if failed and provenance.rank() > 0:
            _tell_rank_zero(error, directory)
        others = sorted(directory.glob(".error-of-rank-*[0-9]")) if provenance.rank() == 0 else []
        elsewhere = "; ".join(file.read_text() for file in others)
        if isinstance(error, UserError) and record.refused and record.earlier:
            record.write_back()
        else:
            record.fields["status"] = "failed" if elsewhere else status_after(error)
            # An interruption or the loss of another rank has many exception types, which are not informative.
            own = f"{type(error).__name__}: {error}" if failed else "interrupted"
            record.fields["error"] = own if isinstance(error, UserError) else elsewhere or own
            if record.fields["status"] == "interrupted":
                options = f"ckpt_path=last {as_typed('hydra.run.dir', directory)}"
                resumed = f". {options} resumes it, without further options"
                log.info("interrupted%s", resumed if last_checkpoint(directory) else " before a checkpoint")
            record.write()
        for file in others:  # their ranks wait until the file is gone
            file.unlink()
        raise
    record.fields["status"] = status_after(None)
    record.write()


def _error_of_this_rank(directory: Path) -> Path:
    return directory / f".error-of-rank-{provenance.rank()}"


def _tell_rank_zero(error: BaseException, directory: Path) -> None:
    """Write this rank's error for rank zero to read. If all ranks raise it, wait until rank zero has recorded its own.

    As soon as one rank ends, torchrun ends the others with a signal, which looks like an interruption.
    """
    told = _error_of_this_rank(directory)
    write_text(told, f"rank {provenance.rank()}: {type(error).__name__}: {error}")
    deadline = time.monotonic() + _RECORD_SECONDS
    while isinstance(error, UserError) and told.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def status_after(error: BaseException | None) -> str:
    """Return the status of a run: completed, interrupted (which can be resumed) or failed."""
    if error is None:
        return "completed"
    return "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"


def describe(run: Run) -> dict[str, Any]:
    """Return the sizes of the model and its device."""
    task, device = run.task, run.trainer.strategy.root_device
    state, checksums = run.data.state_dict(), {"data": "crc32", "test_data": "test_crc32"}
    return {
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
        "state_size": task.state_size,
        "batch_size": run.data.batch_size,
        **{name: state[key] for name, key in checksums.items() if state.get(key) is not None},
        **({"foreign_files": list(foreign)} if (foreign := run.data.foreign_files) else {}),
        "processes": run.trainer.world_size,
        **provenance.describe(device),
    }


def metrics(run: Run) -> dict[str, float]:
    """Return the latest value of every training and validation metric."""
    latest = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    return {**run.task.rows.latest, **latest}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return str(value)
