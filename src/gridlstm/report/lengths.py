"""Test scores by length: does a network generalize beyond the lengths it was trained on?"""

import re
import statistics
from collections.abc import Sequence

from gridlstm.files import to_png
from gridlstm.report.drawing import drawn, labeled, one_legend, short_names
from gridlstm.report.tables import Group, Spread, Table, values

_BY_LENGTH = re.compile(r"(test/\w+?)_(\d+)_([a-z]+)")
"""Metric, length and unit of a name such as test/sequence_accuracy_20_digits."""

_MOST_NAMED = 10
"""Largest number of groups that are all named below the picture."""

Panel = tuple[str, str]
"""A metric and the unit of its lengths."""


def length_picture(tables: Sequence[Table]) -> bytes | None:
    """Return a PNG with a panel for every metric by length, and a line for the mean and range of each group's seeds.

    Return None if no test was broken down by length.
    """
    from matplotlib.figure import Figure

    names = short_names(option for table in tables for option in table.varied)
    lines = [
        (table.named(labeled(group.settings, names) or drawn(group.label)), some)
        for table in tables
        for group in table.groups
        if (some := by_length(group, table.monitor))
    ]
    panels = list(dict.fromkeys(panel for _, some in lines for panel in some))
    if not panels:
        return None
    named = len(lines) if len(lines) <= _MOST_NAMED else 0
    figure = Figure(figsize=(6 * len(panels), 4 + 0.2 * named), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for n, (label, some) in enumerate(lines):
            lengths, spreads, colour = list(some.get(panel, {})), some.get(panel, {}).values(), f"C{n % 10}"
            axes.plot(lengths, [s.mean for s in spreads], marker="o", color=colour, label=label)
            axes.fill_between(lengths, [s.min for s in spreads], [s.max for s in spreads], color=colour, alpha=0.2)
        axes.set_xticks(sorted({length for _, some in lines for length in some.get(panel, {})}))
        axes.set_ylim(-0.03, 1.03)  # accuracies
        axes.set_xlabel(panel[1])
        axes.set_ylabel(panel[0])
        axes.grid(alpha=0.3)
    if named:
        one_legend(figure, "outside lower center", fontsize="small")
    return to_png(figure)


def by_length(group: Group, monitor: str) -> dict[Panel, dict[int, Spread]]:
    """Return metric and unit -> length -> scores of the group's runs, by increasing length."""
    names = dict.fromkeys(name for run in group.completed for name in run.result.get("test", {}))
    parts = [part for name in names if (part := _BY_LENGTH.fullmatch(name))]
    panels: dict[Panel, dict[int, Spread]] = {}
    for part in sorted(parts, key=lambda part: int(part[2])):
        if found := values(group, part[0], monitor):
            spread = Spread(statistics.fmean(found), min(found), max(found))
            panels.setdefault((part[1], part[3]), {})[int(part[2])] = spread
    return panels
