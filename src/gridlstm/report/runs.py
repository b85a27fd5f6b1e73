"""Read run directories: configuration, result and curves; also find jobs of a sweep that left no directory."""

import csv
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from gridlstm.data.old_runs import rewrite
from gridlstm.errors import UserError
from gridlstm.options import IDENTITY, Role, chosen, leaves, role
from gridlstm.training.published import check_report

SOLVED = "samples_to_solve"
"""Key in result.json of the samples that a run needed to meet its criterion; null if it did not meet it."""

_CHECKSUMS = ("data", "test_data")
"""Fields of result.json that say which data were used."""

_SAID = {"task": "run.task", "model": "run.model", "experiment": "run.group"}
"""Keys of result.json that repeat options, with the name of the option."""

_NODES = {"task", "run"}
"""Nodes of every run's config.yaml. The config.yaml of another program is unlikely to have both."""


@dataclass
class Run:
    """One run directory, or one job of a sweep that has no directory yet.

    Attributes:
        directory: path of the run.
        config: config.yaml with dotted keys; {} if it is missing.
        result: result.json; {} if it is missing.
        overrides: overrides of the command line by key; {} if unknown.
        curves: metric -> [(samples, value)], from metrics.csv.
        choices: choices of Hydra's groups, such as scheduler: one_cycle, including an experiment's; {} if unknown.
    """

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Status: completed, failed, interrupted, "running or killed", or missing."""
        status = str(self.result.get("status", "missing"))
        return "running or killed" if status == "running" else status

    @property
    def seed(self) -> Any:
        return self.config.get("seed", self.overrides.get("seed", self.result.get("seed", "")))

    @property
    def monitor(self) -> str:
        """Monitored metric of the run, "" if unknown."""
        return str(self.config.get("task.monitor", self.result.get("monitor", "")))

    @property
    def experiment(self) -> str:
        """Experiment whose claims apply to the run, "" if unknown."""
        return str(self.config.get("run.group", self.result.get("experiment", "")))

    @property
    def given(self) -> dict[str, str]:
        """Overrides of the run, or the options in result.json if nothing else is left."""
        if self.config or self.overrides:
            return self.overrides
        return {key: str(self.result[key]) for key in _SAID if key in self.result}

    def setting(self, key: str) -> str:
        """Return the value in the configuration, else the one of an override, a choice or the result.

        A run may be resumed with other options than those of its sweep; its configuration has the latest. A list is
        shown as in the override, and a choice by its name, because a choice such as scheduler=none sets null.
        """
        recorded = self.result.get(key, "") if key in (*_SAID, *_CHECKSUMS) else ""
        option = _SAID.get(key, key)
        own = self.config.get(option, recorded)
        value = self.overrides.get(key, self.choices.get(key, own))
        latest = option in self.config and key not in self.choices and not isinstance(own, list)
        if "${" in str(value) or latest:
            value = own
        text = "null" if value is None else str(value)
        return text.lower() if text in ("True", "False") else text

    def identity(self, with_test: bool = True) -> tuple[Any, ...]:
        """Return a key that is equal for runs that differ only in the seed; they share a row.

        Args:
            with_test: False if the checksum of the test does not count, because other runs lack it.
        """
        if not self.config:
            return ("overrides", *sorted(item for item in self.given.items() if role(item[0]) is not Role.SEED))
        same = chosen(self.config, IDENTITY)
        if not any(key.startswith("task.data.target_level") for key in self.config):
            # The callback of all tasks. Only translations have a beam, and older runs of other tasks lack the option.
            same.pop("callbacks.translations.beam", None)
        # A checksum identifies data better than a path: one text may be in two places. Older runs called it text.
        data = self.result.get("data", self.result.get("text"))
        same |= chosen(self.config, {Role.SOURCE}) if data is None else {"data": data}
        if with_test and "test_data" in self.result:
            same["test_data"] = self.result["test_data"]
        same |= {name: self.config.get(key) for name, key in _SAID.items()}
        return tuple((key, str(value)) for key, value in sorted(same.items()))


def find_runs(roots: list[Path]) -> list[Run]:
    """Return all runs below some directories in path order, each once even if several links lead to it.

    A run is a directory with config.yaml or result.json, or a job that a sweep.json lists. If a launcher of Hydra left
    no sweep.json, every directory directly in the sweep directory (the one with multirun.yaml) is a run.

    Raises:
        UserError: a directory does not exist, cannot be read, or holds no runs.
    """
    places: dict[Path, Path] = {}
    planned: dict[Path, list[str]] = {}
    for root in dict.fromkeys(Path(os.path.abspath(root)) for root in roots):
        if not root.is_dir():
            raise UserError(
                f"{root} is not a directory. Give the directory of a sweep, such as multirun/adhoc/2026-01-31_12-00-00."
            )
        results, configs, plans, sweeps = _walk(root, ("result.json", "config.yaml", "sweep.json", "multirun.yaml"))
        found = results | {directory for directory in configs if directory in results or _ours(directory)}
        jobs = {sweep / name: overrides for sweep in plans for name, overrides in _jobs(sweep / "sweep.json")}
        for sweep in sweeps - plans:
            found |= {child for child in sweep.iterdir() if child.is_dir() and not _no_run(child.name)}
        if not found and not jobs:
            raise UserError(f"{root} holds no runs: there is no config.yaml, result.json or sweep.json below it.")
        for directory in sorted(found | set(jobs), key=_natural):
            places.setdefault(directory.resolve(), directory)
        planned |= {directory.resolve(): overrides for directory, overrides in jobs.items()}
    runs = [_read(directory, planned.get(place)) for place, directory in places.items()]
    _lend_checksums(runs)
    return runs


def _lend_checksums(runs: Sequence[Run]) -> None:
    """Give runs that have not read their data yet, or failed before, the checksums of runs with the same options."""
    lenders: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        if "data" in run.result:
            lenders.setdefault(_unread(run), run)
    for run in runs:
        if run.config and "data" not in run.result and (lender := lenders.get(_unread(run))) is not None:
            run.result |= {name: lender.result[name] for name in _CHECKSUMS if name in lender.result}


def _unread(run: Run) -> tuple[Any, ...]:
    """Return a key that is equal for runs that differ only in the seed, without what they found in their data."""
    return tuple((key, str(value)) for key, value in sorted(chosen(run.config, IDENTITY | {Role.SOURCE}).items()))


def _jobs(plan: Path) -> list[tuple[str, list[str]]]:
    """Return name and overrides of every job that a sweep.json lists."""
    try:
        return [(job["name"], job["overrides"]) for job in _json(plan)["jobs"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{plan} is damaged: it lists no jobs. Repair or delete it.") from error


def _walk(root: Path, files: Sequence[str]) -> list[set[Path]]:
    """Return, for each file name, the directories at or below ``root`` that contain such a file; follow links.

    Raises:
        UserError: a directory cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename} cannot be read: {error.strerror}. Make it readable, or give other directories."
        ) from error

    found: list[set[Path]] = [set() for _ in files]
    seen = set[str]()
    for directory, below, names in os.walk(root, onerror=refuse, followlinks=True):
        place = os.path.realpath(directory)
        if place in seen:
            below.clear()
            continue
        seen.add(place)
        below[:] = sorted(name for name in below if not _no_run(name))
        for file, having in zip(files, found, strict=True):
            if file in names:
                having.add(Path(directory))
    return found


def _no_run(name: str) -> bool:
    """Return True if a directory of this name never holds runs."""
    return name == "wandb" or name.startswith(".")


def _ours(directory: Path) -> bool:
    """Return True if the config.yaml of a directory belongs to a run."""
    config = _yaml(directory / "config.yaml")
    return isinstance(config, dict) and config.keys() >= _NODES


def _natural(directory: Path) -> tuple[Any, ...]:
    """Return a sort key that puts job 10 after job 9."""
    number, _, rest = directory.name.partition("-")
    return (str(directory.parent), int(number) if number.isdigit() else -1, rest, directory.name)


def _read(directory: Path, overrides: list[str] | None) -> Run:
    run = Run(directory)
    if (directory / "config.yaml").exists():
        config = _yaml(directory / "config.yaml")
        if not isinstance(config, dict) or not config.keys() >= _NODES:
            raise UserError(f"{directory / 'config.yaml'} is damaged: it lacks options of a run. Repair or delete it.")
        if config.get("report"):
            check_report(config["report"], str(directory / "config.yaml"), read_files=False)
        rewrite(config, references=False)
        run.config = dict(leaves(config))
    if (directory / "result.json").exists():
        found = _json(directory / "result.json")
        run.result = {name: value for name, value in found.items() if value is not None or name == SOLVED}
    if overrides is None and (directory / ".hydra" / "overrides.yaml").exists():
        overrides = _yaml(directory / ".hydra" / "overrides.yaml")
    if (directory / ".hydra" / "hydra.yaml").exists():
        said = dict(leaves(_yaml(directory / ".hydra" / "hydra.yaml")))
        start = "hydra.runtime.choices."
        run.choices = {key.removeprefix(start): value for key, value in said.items() if key.startswith(start)}
    parts = [override.lstrip("+~").partition("=") for override in overrides or []]
    run.overrides = {key: re.sub(r"\\(.)", r"\1", value) for key, _, value in parts}  # Hydra writes 00\:05\:00
    if (directory / "metrics.csv").exists():
        run.curves = _curves(directory / "metrics.csv")
    return run


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OSError, ValueError) as error:  # ValueError: bytes that are not text
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}. Repair or delete it.") from error


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; NaN and infinities become null."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Repair or delete it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object. Repair or delete it.")
    return content


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not row.get("samples"):
                    continue  # a test row, which has no samples
                for name, value in row.items():
                    if value and "/" in name and not name.startswith("test/") and math.isfinite(y := float(value)):
                        curves.setdefault(name, []).append((float(row["samples"]), y))
    except (ValueError, TypeError) as error:  # TypeError: a row with more values than names
        raise UserError(f"{path} is damaged: {error}. Repair or delete it.") from error
    return curves
