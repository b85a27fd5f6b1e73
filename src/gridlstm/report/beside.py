"""Small tables below the table of runs: equal budgets, published numbers and published claims."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gridlstm.report.budgets import at_equal_budgets
from gridlstm.report.published_figure import medians
from gridlstm.report.tables import Beside, Group, Table, holds, values
from gridlstm.report.thresholds import samples_to_thresholds

_PUBLISHED, _CLAIMS = "report.published.", "report.claims."


def beside(table: Table) -> list[Beside]:
    """Return the tables of equal budgets, of published networks that were not run here, and of published claims.

    The claims of an experiment are compared with its own runs only.
    """
    config: dict[str, Any] = {}
    for group in table.groups:
        for run in group.runs:
            config |= {key: value for key, value in run.config.items() if key.startswith(_PUBLISHED)}
    found = [small for small in (samples_to_thresholds(table), medians(table), at_equal_budgets(table)) if small]
    published: dict[str, list[tuple[str, ...]]] = {}
    for key, value in config.items():
        metric, _, network = key.removeprefix(_PUBLISHED).partition(".")
        published.setdefault(metric, []).append((network, f"{value:.4g}"))
    for metric, rows in published.items():
        found.append(Beside("Published elsewhere", ("network", metric), tuple(rows)))
    experiments: dict[str, list[Group]] = {}
    for group in table.groups:
        experiments.setdefault(group.runs[0].experiment, []).append(group)
    several = len(experiments.keys() - {""}) > 1
    for experiment, groups in experiments.items():
        title = f"Published claims, {experiment}" if several else "Published claims"
        if claims := _claims(groups):
            own = replace(table, groups=tuple(groups))
            rows = [(str(c["claim"]), str(c["there"]), _here(own, c["of"], c.get("against"))) for c in claims]
            found.append(Beside(title, ("claim", "there", f"here, {table.monitor}"), tuple(rows)))
    return found


def _claims(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the claims of an experiment, each as a mapping of its parts."""
    claims: dict[str, dict[str, Any]] = {}
    for key, value in (item for group in groups for run in group.runs for item in run.config.items()):
        if key.startswith(_CLAIMS):
            name, _, part = key.removeprefix(_CLAIMS).rpartition(".")
            claims.setdefault(name, {})[part] = value
    return list(claims.values())


def _here(table: Table, of: str, against: str | None) -> str:
    """Return the best score of the groups that satisfy ``of``, and its difference in percent from ``against``."""
    mine = _best(table, of)
    if mine is None:
        return _why_none(table, of)
    if against is None:
        return f"{mine[0]:.4g}"
    other = _best(table, against)
    if other is None:
        return f"{mine[0]:.4g} ({mine[1]}); the other: {_why_none(table, against)}"
    if other[0] == 0:  # a percentage of 0 is undefined
        return f"{mine[0]:.4g} ({mine[1]}), {other[0]:.4g} ({other[1]})"
    percent = 100 * (1 - mine[0] / other[0])
    way = "below" if percent >= 0 else "above"
    return f"{abs(percent):.2f} % {way}: {mine[0]:.4g} ({mine[1]}), {other[0]:.4g} ({other[1]})"


def _why_none(table: Table, options: str) -> str:
    runs = [run for group in table.groups for run in group.runs if run.status != "missing"]
    begun = any(all(holds(run, option) for option in options.split()) for run in runs)
    return "run, not completed" if begun else "not run"


def _best(table: Table, options: str) -> tuple[float, str] | None:
    found = [
        (statistics.fmean(scores), group.runs[0].directory.name)
        for group in table.groups
        if all(holds(group.runs[0], option) for option in options.split())
        and (scores := values(group, table.monitor, table.monitor))
    ]
    if not found:
        return None
    return max(found) if table.mode == "max" else min(found)
