"""The jobs of a sweep directory: which there are, where each lands, and how each stands."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gridlstm.errors import UserError
from gridlstm.files import read_json, write_text
from gridlstm.training.legs import CHECKPOINTS, earlier_result, last_checkpoint

PLAN = "sweep.json"
"""The file of a sweep directory that names its jobs and their overrides, also those that have not begun."""


@dataclass
class Job:
    """One point of a sweep.

    Attributes:
        number: in its sweep directory.
        directory: where it runs; ``name`` is its path below the sweep's.
        overrides: of the command line, without Hydra's own.
        config: the configuration that they compose to.
    """

    number: int
    name: str
    directory: Path
    overrides: list[str]
    config: DictConfig

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """What its configuration takes from ``${hydra:…}`` is then the job's, not the sweep's."""
        sweep = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(self.config)
        try:
            yield
        finally:
            HydraConfig.instance().cfg = sweep

    def result(self) -> dict[str, Any]:
        """result.json, or {} where there is none."""
        return read_json(self.directory / "result.json")

    def progress(self) -> dict[str, Any]:
        """progress.json, or {} where there is none, or it cannot be read now: it is only shown."""
        try:
            return read_json(self.directory / "progress.json")
        except (OSError, UserError):
            return {}

    def completed(self) -> bool:
        """Whether it has run to its end, with a score."""
        return _score(self.directory) is not None

    def resumable(self) -> bool:
        """Whether an earlier attempt left a checkpoint to go on from."""
        return last_checkpoint(self.directory) is not None

    def begin(self) -> None:
        """Makes its directory, without what an earlier attempt left there that this one must not pass for.

        Of an attempt that is gone on with, result.json keeps all but how it ended: its seconds count.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "result.json"
        if self.resumable():
            write_text(path, json.dumps(earlier_result(self.directory), indent=2) + "\n")
        else:
            path.unlink(missing_ok=True)
            shutil.rmtree(self.directory / CHECKPOINTS, ignore_errors=True)  # what stays is refused by the job
        (self.directory / "progress.json").unlink(missing_ok=True)

    def record_end(self, status: str, error: str) -> None:
        """Writes how it ended into result.json, where the job itself could not say so, and how long it had trained."""
        result = earlier_result(self.directory) | {"status": status, "error": error}
        write_text(self.directory / "result.json", json.dumps(result, indent=2) + "\n")
        (self.directory / "progress.json").unlink(missing_ok=True)  # whose seconds are in it now


@dataclass
class Plan:
    """The jobs of one sweep, or of one batch of a search, and of its directory.

    Attributes:
        jobs: of this sweep.
        rows: of PLAN, for all jobs of the directory.
        left: names of jobs of the directory that are not of this sweep and have not been completed.
    """

    jobs: list[Job]
    rows: list[dict[str, Any]]
    left: list[str]

    def write(self, root: Path) -> None:
        """Writes it into the sweep directory ``root``."""
        write_text(root / PLAN, json.dumps({"jobs": self.rows}, indent=2) + "\n")


def plan(
    root: Path,
    points: Sequence[list[str]],
    first_number: int,
    compose: Callable[[list[str], int], tuple[DictConfig, str]],
) -> Plan:
    """The jobs of a sweep, in a directory that may hold jobs of an earlier one.

    A point that ran there before keeps its directory. A new point whose number or directory another job has already
    is given the next free number.

    Args:
        root: the sweep directory.
        points: overrides of each job.
        first_number: of the first job.
        compose: (overrides, number) -> configuration and directory below ``root``.

    Raises:
        UserError: a directory is another job's whatever the number.
    """
    rows = read_json(root / PLAN).get("jobs", [])
    known = {tuple(row["overrides"]): row for row in rows}
    taken = {row["name"] for row in rows}
    jobs: list[Job] = []
    for offset, overrides in enumerate(points):
        # Each only once: a point that a search proposes twice is two jobs.
        if old := known.pop(tuple(overrides), None):
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
                    f"{root / name} holds another job already. hydra.sweep.subdir must differ from job to job; put "
                    f"${{hydra.job.num}} into it."
                )
        taken.add(name)
        rows.append({"number": number, "name": name, "overrides": overrides})
        jobs.append(Job(number, name, root / name, overrides, config))
    rows.sort(key=lambda row: row["number"])
    others = [row["name"] for row in rows if row["name"] not in {job.name for job in jobs}]
    return Plan(jobs, rows, [name for name in others if _score(root / name) is None])


def best_of(root: Path, mode: str) -> tuple[float, str] | None:
    """The best score in a sweep directory, and the job's name and point; None before the first.

    Args:
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
    """Of the job of this directory; None unless it has run to its end, with a score."""
    result = read_json(directory / "result.json")
    score: float | None = result.get("score") if result.get("status") == "completed" else None
    return score
