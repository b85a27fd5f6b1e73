"""Learning curves of all runs, as a picture and as thinned data for a web page."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gridlstm.files import to_png
from gridlstm.report.drawing import drawn, labeled, short_names, wide
from gridlstm.report.published_figure import options_of, published_curves
from gridlstm.report.runs import SOLVED, Run
from gridlstm.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 400
"""Largest number of points of one curve in a web page, about one per pixel."""

_FEW = 20
"""Largest number of runs that are all drawn, because the worst runs of an ablation matter as much as the best."""

_MOST_DOTS = 50
"""Largest number of points of a curve that are marked: more would cover it."""

_MOST_NAMED = 40
"""Largest number of groups that are all named in the picture."""

Curve = list[tuple[float, float]]


def thinned(curve: Curve) -> Curve:
    """Return at most ``_MOST_POINTS`` evenly chosen points, including the first and the last."""
    if len(curve) <= _MOST_POINTS:
        return curve
    step = (len(curve) - 1) / (_MOST_POINTS - 1)
    return [curve[round(i * step)] for i in range(_MOST_POINTS)]


def best_ten(table: Table) -> list[Run]:
    """Return the ten best runs of each kind of network, or all if there are few."""
    if sum(len(group.runs) for group in table.groups) <= _FEW:
        return [run for group in table.groups for run in group.runs]

    def rank(run: Run) -> tuple[float, float]:
        score = run.result.get("best", {}).get(table.monitor)  # null if it was NaN
        return (run.result.get(SOLVED) or math.inf, math.inf if score is None else sign * score)

    sign = -1 if table.mode == "max" else 1
    kept: list[Run] = []
    for kind in {_kind(run): None for group in table.groups for run in group.runs}:
        runs = [run for group in table.groups for run in group.runs if _kind(run) == kind]
        kept += sorted(runs, key=rank)[:10]
    return kept


def _kind(run: Run) -> tuple[str, str]:
    return run.setting("model"), run.setting("model.tied").lower()


def picture(tables: Sequence[Table]) -> bytes:
    """Return a PNG with a panel for every table, a color for every group and a line for each of the best runs."""
    # Imported here because the import takes half a second, and commands that only read and check runs do not need it.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 * len(tables)), layout="constrained")
    height = figure.get_figheight()
    for axes, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        best = best_ten(table)
        groups = [group for group in table.groups if any(run in best for run in group.runs)]
        colours = colormaps["tab10" if len(groups) <= 10 else "turbo"]
        names = short_names(table.varied)
        for n, group in enumerate(groups):
            colour = colours(n if len(groups) <= 10 else n / len(groups))
            style = "-" if len(groups) <= 10 else ("-", "--", ":")[n % 3]  # neighbors have similar colors
            label: str | None = labeled(group.settings, names) or drawn(group.label)
            for run in group.runs:
                if run in best and (curve := run.curves.get(table.monitor)):
                    axes.plot(*zip(*curve, strict=True), color=colour, linestyle=style, label=label, linewidth=1.2)
                    axes.lines[-1].set_marker("." if len(curve) <= _MOST_DOTS else "")
                    label = None
        for network, samples, reached in published_curves(table):
            settings = options_of(network)
            label = f"published: {labeled(settings, short_names([*settings, *table.varied]))}"
            axes.plot(samples, reached, color="0.5", linestyle="--", linewidth=1, label=label)
        axes.set_xlabel("training samples")
        axes.set_ylabel(table.title)
        if wide(float(line.get_xdata()[-1]) for line in axes.lines):
            axes.set_xscale("log")  # otherwise the curves of short runs are upright lines
        axes.grid(alpha=0.3)
        if len(best) < sum(len(group.runs) for group in table.groups):
            axes.set_title("the ten best runs of each kind", fontsize="medium")
        if axes.lines and len(groups) <= _MOST_NAMED:
            height += _legend(axes)
    figure.set_figheight(height)
    return to_png(figure)


def _legend(axes: "Axes") -> float:
    """Draw a legend below the panel, where it covers no curve, and return the inches that it adds."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels))
    labels = [textwrap.fill(label, 85) for label in labels]
    columns = max(1, 80 // (longest + 5))
    axes.legend(handles, labels, fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.15), ncols=columns)
    return 0.18 * sum(label.count("\n") + 1 for label in labels) / columns
