"""Jobs of a sweep directory: their points, directories and states."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gridlstm.errors import UserError
from gridlstm.files import read_json, write_text
from gridlstm.training.legs import CHECKPOINTS, earlier_result, last_checkpoint

PLAN = "sweep.json"
"""File in a sweep directory that lists its jobs and their overrides, including jobs that have not started."""


class Trained(NamedTuple):
    """Optimizer steps and seconds of training."""

    steps: int
    seconds: float


@dataclass
class Job:
    """One point of a sweep.

    Attributes:
        number: number in its sweep directory.
        name: path of ``directory`` relative to the sweep directory.
        directory: run directory of the job.
        overrides: overrides of the command line, without Hydra's.
        config: configuration composed from them.
    """

    number: int
    name: str
    directory: Path
    overrides: list[str]
    config: DictConfig

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Make ``${hydra:…}`` in its configuration refer to the job instead of the sweep."""
        sweep = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(self.config)
        try:
            yield
        finally:
            HydraConfig.instance().cfg = sweep

    def result(self) -> dict[str, Any]:
        """Return the contents of result.json, or {} if it does not exist."""
        return read_json(self.directory / "result.json")

    def progress(self) -> dict[str, Any]:
        """Return the contents of progress.json, or {} if it cannot be read; it is for display only."""
        try:
            return read_json(self.directory / "progress.json")
        except (OSError, UserError):
            return {}

    def completed(self) -> bool:
        """Return True if the job has finished with a score."""
        return _score(self.directory) is not None

    def resumable(self) -> bool:
        """Return True if an earlier attempt left a checkpoint to resume from."""
        return last_checkpoint(self.directory) is not None

    def trained(self) -> Trained:
        """Return how long earlier attempts trained that this one continues."""
        if not self.resumable():
            return Trained(0, 0.0)
        earlier = earlier_result(self.directory)
        return Trained(self.progress().get("step", earlier.get("steps", 0)), earlier.get("fit_seconds", 0.0))

    def begin(self) -> None:
        """Create the directory, and remove results of an earlier attempt that could be mistaken for new ones.

        If the job resumes, result.json keeps everything except how the attempt ended, because its seconds count.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "result.json"
        if self.resumable():
            write_text(path, json.dumps(earlier_result(self.directory), indent=2) + "\n")
        else:
            path.unlink(missing_ok=True)
            shutil.rmtree(self.directory / CHECKPOINTS, ignore_errors=True)  # the job refuses to start if this fails
        (self.directory / "progress.json").unlink(missing_ok=True)

    def record_end(self, status: str, error: str) -> None:
        """Write how the job ended and how long it trained to result.json, if the job itself could not."""
        result = earlier_result(self.directory) | {"status": status, "error": error}
        write_text(self.directory / "result.json", json.dumps(result, indent=2) + "\n")
        (self.directory / "progress.json").unlink(missing_ok=True)  # its seconds are now in result.json


@dataclass
class Plan:
    """Jobs of one sweep or one batch of a search, with all entries of its directory.

    Attributes:
        jobs: jobs of this sweep.
        rows: entries of PLAN for all jobs of the directory.
        left: names of jobs in the directory that are not part of this sweep and not completed.
    """

    jobs: list[Job]
    rows: list[dict[str, Any]]
    left: list[str]

    def write(self, root: Path) -> None:
        """Write the plan to the sweep directory ``root``."""
        write_text(root / PLAN, json.dumps({"jobs": self.rows}, indent=2) + "\n")


def plan(
    root: Path,
    points: Sequence[list[str]],
    first_number: int,
    compose: Callable[[list[str], int], tuple[DictConfig, str]],
) -> Plan:
    """Return the jobs of a sweep, in a directory that may hold jobs of an earlier one.

    A point that ran there before keeps its directory. A new point gets the next free number if another job has its
    number or directory.

    Args:
        root: sweep directory.
        points: overrides of each job.
        first_number: number of the first job.
        compose: (overrides, number) -> configuration and directory below ``root``.

    Raises:
        UserError: a directory belongs to another job and does not depend on the number.
    """
    rows = read_json(root / PLAN).get("jobs", [])
    known: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        known.setdefault(tuple(row["overrides"]), []).append(row)
    taken = {row["name"] for row in rows}
    jobs: list[Job] = []
    for offset, overrides in enumerate(points):
        # pop: a search may propose a point twice, which makes two jobs.
        if waiting := known.get(tuple(overrides)):
            old = waiting.pop(0)
            config, _ = compose(overrides, old["number"])
            jobs.append(Job(old["number"], old["name"], root / old["name"], overrides, config))
            continue
        number = first_number + offset
        if number in (numbers := [row["number"] for row in rows]):
            number = 1 + max(numbers)
        config, name = compose(overrides, number)
        while name in taken or (root / name / "result.json").exists():
            number = 1 + max([number, *numbers])
            before = name
            config, name = compose(overrides, number)
            if name == before:
                raise UserError(
                    f"{root / name} already holds another job. hydra.sweep.subdir must differ between jobs. Add "
                    f"${{hydra.job.num}} to it."
                )
        taken.add(name)
        rows.append({"number": number, "name": name, "overrides": overrides})
        jobs.append(Job(number, name, root / name, overrides, config))
    rows.sort(key=lambda row: row["number"])
    others = [row["name"] for row in rows if row["name"] not in {job.name for job in jobs}]
    return Plan(jobs, rows, [name for name in others if _score(root / name) is None])


def best_of(root: Path, mode: str) -> tuple[float, str] | None:
    """Return the best score in a sweep directory with the job's name and point, or None before the first score.

    Args:
        root: sweep directory.
        mode: "max" or "min".
    """
    found = []
    for row in read_json(root / PLAN).get("jobs", []):
        if (score := _score(root / row["name"])) is not None:
            found.append((score, f"{row['name']} ({' '.join(row['overrides'])})"))
    if not found:
        return None
    return max(found) if mode == "max" else min(found)


def _score(directory: Path) -> float | None:
    """Return the score of the job in this directory, or None unless it finished with one."""
    result = read_json(directory / "result.json")
    score: float | None = result.get("score") if result.get("status") == "completed" else None
    return score
