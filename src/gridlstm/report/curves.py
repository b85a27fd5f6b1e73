"""Learning curves of all runs: as a picture, and thinned out for a page."""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gridlstm.report.runs import Run
from gridlstm.report.tables import SOLVED, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 400
"""Of one curve in a page, as many as its pixels."""

Curve = list[tuple[float, float]]


def thinned(curve: Curve) -> Curve:
    """At most so many points, evenly chosen, the first and the last among them."""
    if len(curve) <= _MOST_POINTS:
        return curve
    step = (len(curve) - 1) / (_MOST_POINTS - 1)
    return [curve[round(i * step)] for i in range(_MOST_POINTS)]


def best_ten(table: Table) -> list[Run]:
    """The ten best runs of each model, as in the paper's figures; all where there are no more."""

    def rank(run: Run) -> tuple[float, float]:
        score = run.result.get("best", {}).get(table.monitor, math.nan)
        return (run.result.get(SOLVED) or math.inf, math.inf if math.isnan(score) else sign * score)

    sign = -1 if table.mode == "max" else 1
    kept: list[Run] = []
    for model in {run.setting("model"): None for group in table.groups for run in group.runs}:
        runs = [run for group in table.groups for run in group.runs if run.setting("model") == model]
        kept += sorted(runs, key=rank)[:10]
    return kept


def picture(tables: Sequence[Table]) -> bytes:
    """A PNG with a panel for every monitored metric: one colour a group, one line for each of the best runs."""
    # Imported here: matplotlib takes half a second that reading and checking do not need.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 * len(tables)), layout="constrained")
    height = figure.get_figheight()
    for axes, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        best = best_ten(table)
        groups = [group for group in table.groups if any(run in best for run in group.runs)]
        colours = colormaps["tab10" if len(groups) <= 10 else "turbo"]
        for n, group in enumerate(groups):
            colour = colours(n if len(groups) <= 10 else n / len(groups))
            label: str | None = group.label
            for run in group.runs:
                if run in best and (curve := run.curves.get(table.monitor)):
                    axes.plot(*zip(*curve, strict=True), color=colour, label=label, marker=".", linewidth=1.2)
                    label = None
        axes.set_xlabel("training samples")
        axes.set_ylabel(table.monitor or "no metric known")
        axes.grid(alpha=0.3)
        if len(best) < sum(len(group.runs) for group in table.groups):
            axes.set_title("the ten best runs of each model", fontsize="medium")
        if axes.lines and len(groups) <= 20:
            height += _legend(axes)
    figure.set_figheight(height)
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png", bbox_inches="tight")
    return out.getvalue()


def _legend(axes: "Axes") -> float:
    """Names what is drawn, below it where the names are long; the inches that these take."""
    handles, labels = axes.get_legend_handles_labels()
    if max(map(len, labels)) <= 40:
        axes.legend(fontsize="small")
        return 0.0
    labels = [textwrap.fill(label, 85) for label in labels]
    axes.legend(handles, labels, fontsize="small", loc="upper left", bbox_to_anchor=(0, -0.15))
    return 0.18 * sum(label.count("\n") + 1 for label in labels)


_AXES = {"model.num_layers": "layers", "task.delay": "steps of delay", "task.bits": "bits", "task.digits": "digits"}
"""Options against which samples to solve are drawn where they vary; the first is the paper's picture."""


def criterion_picture(tables: Sequence[Table]) -> bytes | None:
    """A PNG of samples to solve against the number of layers, as the paper plots them, and against other sizes.

    One mark a run; a hollow one, at the samples that it was given, is a run that did not solve its task. None where no
    runs had a criterion, or all of them the same sizes.
    """
    from matplotlib.figure import Figure

    runs = [
        (group, run, run.config[key], key)
        for key in _AXES
        for table in tables
        for group in table.groups
        for run in group.completed
        if SOLVED in run.result and run.config.get(key) is not None
    ]
    keys = [key for key in _AXES if len({size for _, _, size, k in runs if k == key}) > 1]
    if not keys:
        return None
    figure = Figure(figsize=(7, 4 * len(keys)), layout="constrained")
    height = figure.get_figheight()
    for axes, key in zip(figure.subplots(len(keys), 1, squeeze=False)[:, 0], keys, strict=True):
        marks: dict[str, list[tuple[int, float, bool]]] = {}
        for group, run, size, k in runs:
            if k == key:
                kind = ", ".join(part for part in group.label.split(", ") if key.rpartition(".")[2] + "=" not in part)
                samples = run.result[SOLVED]
                mark = (size, samples or run.result["samples"], samples is not None)
                marks.setdefault(kind or run.setting("model"), []).append(mark)
        for n, (kind, places) in enumerate(marks.items()):
            for solved in (True, False):
                if some := [place[:2] for place in places if place[2] == solved]:
                    face = f"C{n % 10}" if solved else "none"
                    label = kind if solved else f"{kind}: not solved"
                    axes.scatter(*zip(*some, strict=True), label=label, facecolors=face, edgecolors=f"C{n % 10}")
        axes.set_xlabel(_AXES[key])
        axes.set_ylabel("training samples to solve")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if len(marks) <= 10:
            height += _legend(axes)
    figure.set_figheight(height)
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png", bbox_inches="tight")
    return out.getvalue()
