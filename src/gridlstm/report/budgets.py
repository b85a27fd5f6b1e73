"""Best scores of the networks after equal numbers of samples, and after equal times."""

import statistics
from collections.abc import Callable

from gridlstm.report.runs import SOLVED, Run
from gridlstm.report.tables import Beside, Cell, Group, Spread, Table


def at_equal_budgets(table: Table) -> Beside | None:
    """Return each row's best metric within the fewest samples, and within the shortest time, of any completed run.

    The speed of a run is taken as constant: within s seconds it has seen samples · s / fit_seconds samples. Seconds are
    left out if devices differ. Samples or seconds are left out if they restrict no run. Return None if there is
    nothing to compare, or if a criterion may have ended the runs.
    """
    groups = [group for group in table.groups if group.completed]
    results = [run.result for group in groups for run in group.completed]
    known = all(result.get("fit_seconds") and "samples" in result for result in results)  # not after a test alone
    if len(groups) < 2 or not known or any(SOLVED in result for result in results):
        return None
    fewest, shortest = min(r["samples"] for r in results), min(r["fit_seconds"] for r in results)
    budgets: dict[str, Callable[[Run], float]] = {}
    if any(result["samples"] > fewest for result in results):
        budgets[f"within {fewest:,} samples"] = lambda run: fewest
    if len({result.get("device") for result in results}) == 1 and any(r["fit_seconds"] > shortest for r in results):
        budgets[f"within {shortest:,.0f} s of training"] = lambda run: (
            run.result["samples"] * (shortest / run.result["fit_seconds"])
        )
    if not budgets:
        return None
    rows = [
        (*(group.runs[0].setting(key) for key in table.varied), *(_best(group, table, b) for b in budgets.values()))
        for group in groups
    ]
    return Beside("At equal budgets", (*table.varied, *(f"{table.monitor} {name}" for name in budgets)), tuple(rows))


def _best(group: Group, table: Table, budget: Callable[[Run], float]) -> Cell:
    best = max if table.mode == "max" else min
    found = [
        best(reached)
        for run in group.completed
        if (reached := [y for x, y in run.curves.get(table.monitor, []) if x <= budget(run)])
    ]
    # A mean without the slowest runs would say too much.
    whole = found and len(found) == len(group.completed)
    return Spread(statistics.fmean(found), min(found), max(found)) if whole else None
