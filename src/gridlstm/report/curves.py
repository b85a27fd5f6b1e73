"""Learning curves of all runs: as a picture, and thinned out for a page."""

import io
from collections.abc import Sequence

from gridlstm.report.tables import Table

_MOST_POINTS = 400
"""Of one curve in a page, as many as its pixels."""

Curve = list[tuple[float, float]]


def thinned(curve: Curve) -> Curve:
    """At most so many points, evenly chosen, the first and the last among them."""
    if len(curve) <= _MOST_POINTS:
        return curve
    step = (len(curve) - 1) / (_MOST_POINTS - 1)
    return [curve[round(i * step)] for i in range(_MOST_POINTS)]


def picture(tables: Sequence[Table]) -> bytes:
    """A PNG with a panel for every monitored metric: one colour a group, one line a run."""
    # Imported here: matplotlib takes half a second that reading and checking do not need.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4 * len(tables)), layout="constrained")
    for axes, table in zip(figure.subplots(len(tables), 1, squeeze=False)[:, 0], tables, strict=True):
        colours = colormaps["tab10" if len(table.groups) <= 10 else "turbo"]
        for n, group in enumerate(table.groups):
            colour = colours(n if len(table.groups) <= 10 else n / len(table.groups))
            label: str | None = group.label
            for run in group.runs:
                if curve := run.curves.get(table.monitor):
                    axes.plot(*zip(*curve, strict=True), color=colour, label=label, marker=".", linewidth=1.2)
                    label = None
        axes.set_xlabel("training samples")
        axes.set_ylabel(table.monitor or "no metric known")
        axes.grid(alpha=0.3)
        if axes.lines and len(table.groups) <= 20:
            axes.legend(fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, dpi=100, format="png")
    return out.getvalue()
