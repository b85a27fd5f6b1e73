"""Tables of runs: one row for runs that differ only in the seed, one table for each task and monitored metric."""

import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gridlstm.config import in_shell
from gridlstm.options import IDENTITY, Role, role
from gridlstm.report.runs import SOLVED, Run


class Spread(NamedTuple):
    """Mean and range of a metric over seeds."""

    mean: float
    min: float
    max: float


Cell = str | int | float | Spread | None

_COLUMNS = IDENTITY | {Role.SOURCE}
"""Roles of the options that become columns if they vary."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    settings: dict[str, str]
    """Settings that distinguish the group, without options that its network does not have."""
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or self.runs[0].directory.name

    @property
    def completed(self) -> list[Run]:
        return [run for run in self.runs if run.status == "completed"]


@dataclass(frozen=True)
class Table:
    """Table of the groups with one monitored metric; an empty cell is None."""

    monitor: str
    mode: str
    varied: tuple[str, ...]
    """Overrides or options in which the groups differ: the first columns."""
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: tuple[Group, ...]
    task: str = ""
    """Task name; empty unless the report covers several tasks."""

    @property
    def title(self) -> str:
        return self.named(self.monitor or "no metric known")

    def named(self, label: str) -> str:
        """Return the label of a part of the table, prefixed by the task if the report covers several."""
        return ": ".join(filter(None, (self.task, label)))


class Beside(NamedTuple):
    """Small table below the table of runs."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def make_tables(runs: Sequence[Run]) -> list[Table]:
    """Return one table for every task and monitored metric, with the best row first; every run is in one of them."""
    by_identity: dict[tuple[Any, ...], list[Run]] = {}
    with_test = all("test_data" in run.result for run in runs if "data" in run.result)  # older runs lack it
    for run in runs:
        by_identity.setdefault(run.identity(with_test), []).append(run)
    groups = [tuple(members) for members in _join_by_overrides(list(by_identity.values()))]
    # A run without a configuration gets the metric of the other runs of its sweep.
    known = next((run.monitor for run in runs if run.monitor), "")
    known_task = next((task for run in runs if (task := run.setting("task"))), "")
    by_metric: dict[tuple[str, str], list[tuple[Run, ...]]] = {}
    for members in groups:
        task = next((task for run in members if (task := run.setting("task"))), known_task)
        monitor = next((run.monitor for run in members if run.monitor), known)
        by_metric.setdefault((task, monitor), []).append(members)
    several = len({task for task, _ in by_metric}) > 1
    return [_table(monitor, members, task if several else "") for (task, monitor), members in by_metric.items()]


def _join_by_overrides(groups: list[list[Run]]) -> list[list[Run]]:
    """Add runs without a configuration, which never started, to runs with the same overrides except the seed."""

    def key(run: Run) -> tuple[Any, ...]:
        return tuple(sorted(item for item in run.given.items() if role(item[0]) in _COLUMNS))

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
    """Return the overrides in which groups differ, and the options that distinguish groups with equal overrides."""
    keys = dict.fromkeys(["task", "model"])
    keys |= dict.fromkeys(key for group in groups for run in group for key in run.given)
    keys = {key: None for key in keys if role(key) in _COLUMNS}
    # Options that a run was not given are unknown if it never started.
    varied = [key for key in keys if len({group[0].setting(key) for group in groups} - {""}) > 1]
    alike: dict[tuple[str, ...], list[Run]] = {}
    for group in groups:
        if group[0].config:
            alike.setdefault(tuple(group[0].setting(key) for key in varied), []).append(group[0])
    for runs in alike.values():
        options = dict.fromkeys(key for run in runs for key, _ in run.identity())
        varied += [key for key in options if key not in varied and len({run.setting(key) for run in runs}) > 1]
    return varied or ["model"]


def _table(monitor: str, members: Sequence[tuple[Run, ...]], task: str) -> Table:
    varied = _varied(members)
    groups = [Group({key: value for key in varied if (value := runs[0].setting(key))}, runs) for runs in members]
    mode = next((str(m) for group in groups for run in group.runs if (m := run.config.get("task.mode"))), "min")
    groups.sort(key=lambda group: _rank(group, monitor, mode))
    tests = dict.fromkeys(name for group in groups for run in group.runs for name in run.result.get("test", {}))
    to_criterion = [SOLVED] if any(SOLVED in run.result for group in groups for run in group.runs) else []
    measured = [*to_criterion, monitor, *tests]
    papers = [name for name in measured if any(_paper(group, name) is not None for group in groups)]
    recalled = any(run.config.get("report.recalled") for group in groups for run in group.runs)
    columns = [*varied]
    for name in measured:
        columns.append({monitor: f"best {monitor}", SOLVED: "samples to solve"}.get(name, name))
        if name in papers:
            columns.append(f"paper's {columns[-1].removeprefix('best ')}" + (" (recalled)" if recalled else ""))
    columns += ["solved"] if to_criterion else []
    columns += ["seeds", "parameters", "samples", "steps", "processes", "seconds", "device", "commit", "not completed"]
    rows = [_row(group, varied, monitor, measured, papers) for group in groups]
    return Table(monitor, mode, tuple(varied), tuple(columns), tuple(rows), tuple(groups), task)


def _rank(group: Group, monitor: str, mode: str) -> tuple[float, ...]:
    """Return a sort key: largest share solved first, then fewest samples to solve, then best score."""
    scores = values(group, monitor, monitor)
    solved = values(group, SOLVED, monitor)
    score = statistics.fmean(scores) * (-1 if mode == "max" else 1) if scores else 0.0
    return (
        not scores and not solved,
        -len(solved) / max(1, len(judged(group))),
        statistics.fmean(solved) if solved else 0.0,
        score,
    )


def judged(group: Group) -> list[Run]:
    """Return the runs that are known to have met or missed the criterion. A run that diverged has missed it unless it
    met it before. A run that failed before it trained is unknown."""
    return [
        run
        for run in group.runs
        if run.result.get(SOLVED) or (run.status in ("completed", "failed") and SOLVED in run.result)
    ]


def values(group: Group, name: str, monitor: str) -> list[float]:
    """Return the best values of the monitored metric or the test values of the completed runs that have one. Samples to
    solve include runs that met the criterion and later failed or were interrupted, for example in their test."""
    stages: list[dict[str, Any]] = (
        [run.result for run in group.runs]
        if name == SOLVED
        else [run.result.get("best" if name == monitor else "test", {}) for run in group.completed]
    )
    return [stage[name] for stage in stages if stage.get(name) is not None]


def _row(group: Group, varied: list[str], monitor: str, measured: list[str], papers: list[str]) -> tuple[Cell, ...]:
    done = group.completed
    row: list[Cell] = [group.runs[0].setting(key) for key in varied]
    for name in measured:
        found = values(group, name, monitor)
        row.append(Spread(statistics.fmean(found), min(found), max(found)) if found else None)
        if name in papers:
            row.append(_paper(group, name))
    if SOLVED in measured:
        tried = len(judged(group))
        row.append(f"{len(values(group, SOLVED, monitor))} of {tried}" if tried else None)
    row.append(_seeds(group, measured, monitor))
    for name in ("parameters", "samples", "steps", "processes", "seconds"):
        numbers = [run.result[name] for run in done if name in run.result]
        mean = statistics.fmean(numbers) if numbers else None
        row.append(mean if mean is None or name == "seconds" else round(mean))
    row.append(_distinct(run.result.get("device") for run in done))
    row.append(_distinct(_short(str(run.result.get("commit", ""))) for run in done))
    lost = [run for run in group.runs if run.status != "completed"]
    row.append(", ".join(f"seed {run.seed} {run.status}" if run.seed != "" else run.status for run in lost) or None)
    return tuple(row)


def _seeds(group: Group, measured: list[str], monitor: str) -> int | str:
    """Return the number of completed seeds, and the number of runs behind each mean if some runs have no value."""
    done = group.completed
    seeds = len({run.seed for run in done})
    count: int | str = seeds if seeds == len(done) else f"{seeds} in {len(done)} runs"
    found = {name: len(values(group, name, monitor)) for name in measured if name != SOLVED}
    fewer = [f"{name} over {number}" for name, number in found.items() if 0 < number < len(done)]
    return f"{count} ({', '.join(fewer)})" if fewer else count


def evidence(table: Table) -> Beside:
    """Return seeds, versions, devices and commits of each row's completed runs, and the command of the first.

    If no run completed, describe the other runs instead, because their curves are still compared.
    """
    rows = []
    for group in table.groups:
        runs = group.completed or group.runs
        row: list[Cell] = [group.runs[0].setting(key) for key in table.varied]
        seeds = which_seeds(runs)
        row.append(seeds if group.completed or seeds is None else f"{seeds} (not completed)")
        row.append(_distinct(", ".join(map(" ".join, run.result.get("versions", {}).items())) for run in runs))
        row.append(_distinct(run.result.get("device") for run in runs))
        row.append(_distinct(_short(str(run.result.get("commit", ""))) for run in runs))
        commands = (run.result["command"] for run in runs if "command" in run.result)
        row.append(readable(next(commands, None)))
        rows.append(tuple(row))
    columns = (*table.varied, "seeds", "versions", "device", "commit", "command of one run")
    return Beside("Evidence", columns, tuple(rows))


def readable(command: str | None) -> str | None:
    """Return a command without its quotes and without the options that a sweep adds to place the run."""
    if command is None:
        return None
    _, *words = shlex.split(command)
    places = ("run.name=", "hydra.run.dir=", "ckpt_path=last")
    return " ".join(["python", *(in_shell(word) for word in words if not word.startswith(places))])


def which_seeds(runs: Iterable[Run]) -> str | None:
    """Return the seeds of runs, each once."""
    return ", ".join(dict.fromkeys(str(run.seed) for run in runs if run.seed != "")) or None


def _paper(group: Group, metric: str) -> float | None:
    """Return the number that the experiment quotes from the paper: for all runs, for a model, or for several options.

    In {grid2d: 1} the key is a model name, in {"model=grid2d model.num_layers=43": 1} a list of options.
    """
    run, name = group.runs[0], f"report.paper.{metric}"
    for key, value in run.config.items():
        rest = key.removeprefix(name)
        conditions = [part if "=" in part else f"model={part}" for part in rest.removeprefix(".").split()]
        if key.startswith(name) and rest[:1] in ("", ".") and all(holds(run, condition) for condition in conditions):
            return None if value is None else float(value)
    return None


def holds(run: Run, condition: str) -> bool:
    """Return True if ``key=value`` holds for a run; 0 equals 0.0."""
    key, _, value = condition.partition("=")
    found = run.setting(key)
    try:
        return float(found) == float(value)
    except ValueError:
        return found.lower() == value.lower()


def _short(commit: str) -> str:
    head, plus, changes = commit.partition("+")
    return head[:10] + plus + changes


def _distinct(values: Any) -> str | None:
    return "; ".join(dict.fromkeys(str(value) for value in values if value)) or None
