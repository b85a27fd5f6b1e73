"""Runs that differ by seed only become one row; runs judged by one metric, one table."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gridlstm.report.runs import Run


class Spread(NamedTuple):
    """A metric over seeds."""

    mean: float
    min: float
    max: float


Cell = str | int | float | Spread | None

_NOT_VARIED = ("seed", "ckpt_path", "logger", "stages", "run.name")
"""Overrides that say nothing about what was trained."""


@dataclass(frozen=True)
class Group:
    """Runs that differ by seed only."""

    label: str
    runs: tuple[Run, ...]

    @property
    def completed(self) -> list[Run]:
        return [run for run in self.runs if run.status == "completed"]


@dataclass(frozen=True)
class Table:
    """Columns and rows of the groups that are judged by one metric; None is an empty cell."""

    monitor: str
    mode: str
    varied: tuple[str, ...]
    """The overrides or options in which the groups differ: the first columns."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: tuple[Group, ...]


def make_tables(runs: Sequence[Run]) -> list[Table]:
    """One table for every monitored metric, the best row first; every run is in one of them."""
    by_identity: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        by_identity.setdefault(run.identity(), []).append(run)
    groups = [tuple(members) for members in _join_by_overrides(list(by_identity.values()))]
    # A run that left no configuration is judged as the others of its sweep are.
    known = next((run.monitor for run in runs if run.monitor), "")
    by_monitor: dict[str, list[tuple[Run, ...]]] = {}
    for members in groups:
        monitor = next((run.monitor for run in members if run.monitor), known)
        by_monitor.setdefault(monitor, []).append(members)
    return [_table(monitor, members) for monitor, members in by_monitor.items()]


def _join_by_overrides(groups: list[list[Run]]) -> list[list[Run]]:
    """Puts runs without a configuration, which never began, to those with the same overrides but for the seed."""

    def key(run: Run) -> tuple[Any, ...]:
        return tuple(sorted(item for item in run.overrides.items() if item[0] not in ("seed", "ckpt_path")))

    begun = [group for group in groups if group[0].config]
    for group in groups:
        if group[0].config:
            continue
        home = next((g for g in begun if any(key(run) == key(group[0]) and run.overrides for run in g)), None)
        if home is None:
            begun.append(group)
        else:
            home.extend(group)
    return begun


def _varied(groups: Sequence[tuple[Run, ...]]) -> list[str]:
    """The overrides in which groups differ; where these do not tell all of them apart, the options that do."""
    keys = dict.fromkeys(["task", "model"])
    keys |= dict.fromkeys(key for group in groups for run in group for key in run.overrides)
    keys = {key: None for key in keys if key not in _NOT_VARIED and not key.startswith("hydra")}
    # A run that never began says nothing of what it was not given.
    varied = [key for key in keys if len({group[0].setting(key) for group in groups} - {""}) > 1]
    if len({tuple(group[0].setting(key) for key in varied) for group in groups}) < len(groups):
        options = dict.fromkeys(key for group in groups for key, _ in group[0].identity() if group[0].config)
        varied += [key for key in options if key not in varied and len({group[0].setting(key) for group in groups}) > 1]
    return varied or ["model"]


def _table(monitor: str, members: Sequence[tuple[Run, ...]]) -> Table:
    varied = _varied(members)
    groups = [Group(", ".join(f"{key}={runs[0].setting(key)}" for key in varied), runs) for runs in members]
    mode = next((str(run.config["task.mode"]) for group in groups for run in group.runs if run.config), "min")
    groups.sort(key=lambda group: _rank(group, monitor, mode))
    tests = dict.fromkeys(name for group in groups for run in group.runs for name in run.result.get("test", {}))
    papers = [name for name in (monitor, *tests) if any(_paper(group, name) is not None for group in groups)]
    columns = [*varied]
    for name in (monitor, *tests):
        columns.append(f"best {name}" if name == monitor else name)
        if name in papers:
            columns.append(f"paper's {name}")
    columns += ["seeds", "parameters", "samples", "steps", "processes", "seconds", "device", "commit", "not completed"]
    rows = [_row(group, varied, monitor, list(tests), papers) for group in groups]
    return Table(monitor, mode, tuple(varied), tuple(columns), tuple(rows), tuple(groups))


def _rank(group: Group, monitor: str, mode: str) -> tuple[bool, float]:
    scores = [run.result["best"][monitor] for run in group.completed if monitor in run.result.get("best", {})]
    if not scores:
        return (True, 0.0)
    return (False, statistics.fmean(scores) * (-1 if mode == "max" else 1))


def _row(group: Group, varied: list[str], monitor: str, tests: list[str], papers: list[str]) -> tuple[Cell, ...]:
    done = group.completed
    row: list[Cell] = [group.runs[0].setting(key) for key in varied]
    for stage, name in (("best", monitor), *(("test", test) for test in tests)):
        values = [run.result[stage][name] for run in done if name in run.result.get(stage, {})]
        row.append(Spread(statistics.fmean(values), min(values), max(values)) if values else None)
        if name in papers:
            row.append(_paper(group, name))
    row.append(len(done))
    for name in ("parameters", "samples", "steps", "processes", "seconds"):
        numbers = [run.result[name] for run in done if name in run.result]
        mean = statistics.fmean(numbers) if numbers else None
        row.append(mean if mean is None or name == "seconds" else round(mean))
    row.append(_distinct(run.result.get("device") for run in done))
    row.append(_distinct(_short(str(run.result.get("commit", ""))) for run in done))
    row.append(", ".join(f"seed {run.seed} {run.status}" for run in group.runs if run.status != "completed") or None)
    return tuple(row)


def _paper(group: Group, metric: str) -> float | None:
    """What the experiment says that the paper reports, for all models or for this one."""
    config = group.runs[0].config
    value = config.get(f"report.paper.{metric}", config.get(f"report.paper.{metric}.{config.get('run.model')}"))
    return None if value is None else float(value)


def _short(commit: str) -> str:
    head, plus, changes = commit.partition("+")
    return head[:10] + plus + changes


def _distinct(values: Any) -> str | None:
    return "; ".join(dict.fromkeys(str(value) for value in values if value)) or None
