"""Samples until an accuracy was first reached: several thresholds beside the criterion that ends the runs."""

import statistics

from gridlstm.report.published_figure import first_reaching
from gridlstm.report.runs import SOLVED
from gridlstm.report.tables import Beside, Cell, Group, Spread, Table

THRESHOLDS = (0.5, 0.8, 0.9, 0.99)


def samples_to_thresholds(table: Table) -> Beside | None:
    """Return the samples to each of ``THRESHOLDS``, None unless runs with a criterion are judged by an accuracy.

    They are counted at the first validation at or above the threshold, so they depend on how often a run validates.
    """
    judged_by_accuracy = table.mode == "max" and table.monitor.endswith("accuracy")
    if not judged_by_accuracy or not any(SOLVED in run.result for group in table.groups for run in group.runs):
        return None
    rows = [(*(group.runs[0].setting(key) for key in table.varied), *_cells(group, table)) for group in table.groups]
    names = (f"{threshold:.0%}" for threshold in THRESHOLDS)
    return Beside(f"Samples to reach {table.monitor}", (*table.varied, *names, "runs that reached each"), tuple(rows))


def _cells(group: Group, table: Table) -> list[Cell]:
    runs = [run for run in group.runs if run.curves.get(table.monitor)]
    cells: list[Cell] = []
    counts = []
    for threshold in THRESHOLDS:
        found = [x for run in runs if (x := first_reaching(run, table.monitor, threshold)) is not None]
        cells.append(Spread(statistics.fmean(found), min(found), max(found)) if found else None)
        counts.append(str(len(found)))
    return [*cells, f"{', '.join(counts)} of {len(runs)}"]
