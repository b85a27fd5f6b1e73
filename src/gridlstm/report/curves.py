"""Learning curves of all runs: as a picture, and thinned out for a page."""

import io
import math
from collections.abc import Sequence

from gridlstm.report.runs import Run
from gridlstm.report.tables import SOLVED, Table

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
            axes.legend(fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png")
    return out.getvalue()


def depth_picture(tables: Sequence[Table]) -> bytes | None:
    """A PNG of samples to solve against the number of layers, as the paper plots them; None for a single depth.

    One mark a run; a hollow one at the samples that it was given is a run that did not solve its task.
    """
    from matplotlib.figure import Figure

    points: dict[str, list[tuple[int, float, bool]]] = {}
    for table in tables:
        for group in table.groups:
            kind = ", ".join(part for part in group.label.split(", ") if "num_layers=" not in part)
            for run in group.completed:
                layers = run.config.get("model.num_layers")
                if layers is not None and SOLVED in run.result:
                    samples = run.result[SOLVED]
                    place = (int(layers), samples or run.result["samples"], samples is not None)
                    points.setdefault(kind or run.setting("model"), []).append(place)
    if len({layers for places in points.values() for layers, *_ in places}) < 2:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for n, (kind, places) in enumerate(points.items()):
        for solved in (True, False):
            some = [(layers, samples) for layers, samples, was in places if was == solved]
            if some:
                label = kind if solved else f"{kind}: not solved"
                face = f"C{n % 10}" if solved else "none"
                axes.scatter(*zip(*some, strict=True), label=label, facecolors=face, edgecolors=f"C{n % 10}")
    axes.set_xlabel("layers")
    axes.set_ylabel("training samples to solve")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if len(points) <= 10:
        axes.legend(fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png")
    return out.getvalue()
