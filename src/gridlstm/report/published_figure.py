"""Published figures beside one's own runs: samples to a threshold against a size, and learning curves.

``training.published`` describes their files. Those that have moved since the runs are left out. Only runs whose
experiment names a file are compared with it, and only if they have the options of a network in it.
"""

import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gridlstm.errors import UserError
from gridlstm.files import to_png
from gridlstm.report.drawing import labeled, one_legend, short_names
from gridlstm.report.runs import Run
from gridlstm.report.tables import Beside, Table, holds
from gridlstm.training.published import read_curves, read_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes


log = logging.getLogger(__name__)

Read = TypeVar("Read")


class Point(NamedTuple):
    """One mark of a figure: a network of some size, and the samples after which it reached a threshold."""

    size: float
    samples: float
    reached: bool = True
    """False if the run ended below the threshold; ``samples`` then counts all samples of the run."""


class Panel(NamedTuple):
    """Published points and points of the runs, for one kind of network and one threshold."""

    network: str
    """Options that distinguish it from the other networks of its file."""
    at_least: float
    option: str
    """Name of the option that is the size."""
    published: list[Point]
    runs: list[Point]

    def median(self, points: Sequence[Point]) -> float | None:
        """Return the median over sizes of the mean samples at each size, or None.

        Only points that reached the threshold count.
        """
        by_size: dict[float, list[float]] = {}
        for point in points:
            if point.reached:
                by_size.setdefault(point.size, []).append(point.samples)
        return statistics.median(map(statistics.fmean, by_size.values())) if by_size else None


def first_reaching(run: Run, metric: str, at_least: float) -> float | None:
    """Return the samples at the first validation with a metric of at least ``at_least``; None if there is none."""
    return next((samples for samples, value in run.curves.get(metric, []) if value >= at_least), None)


def panels(table: Table) -> list[Panel]:
    """Return a panel for each kind of network in the published points that a table's experiment names.

    A metric that falls has no thresholds to reach from below.
    """
    if table.mode != "max":
        return []
    found = []
    for runs, (option, rows) in _files(table, "report.points", read_points):
        names = shown([row.network for row in rows])
        for network, at_least in dict.fromkeys((row.network, row.at_least) for row in rows):
            same = [row for row in rows if (row.network, row.at_least) == (network, at_least)]
            published = [Point(row.size, row.samples) for row in same]
            own = [run for run in runs if all(holds(run, condition) for condition in network.split())]
            points = [point for run in own if (point := _point(run, table.monitor, option, at_least)) is not None]
            found.append(Panel(names[network], at_least, option, published, points))
    return found


def _point(run: Run, metric: str, option: str, at_least: float) -> Point | None:
    size, curve = run.config.get(option), run.curves.get(metric)
    if not isinstance(size, int | float) or not curve:
        return None
    samples = first_reaching(run, metric, at_least)
    return Point(size, curve[-1][0], reached=False) if samples is None else Point(size, samples)


def medians(table: Table) -> Beside | None:
    """Compare the median over sizes of the samples to each threshold with the published one."""
    rows = []
    for panel in panels(table):
        there, here = panel.median(panel.published), panel.median(panel.runs)
        share = None if here is None or there is None else here / there
        sizes = len({point.size for point in panel.runs})
        never = sum(not point.reached for point in panel.runs)
        rows.append((panel.network, panel.at_least, there, len(panel.published), here, sizes, never, share))
    if not rows or not any(row[5] for row in rows):
        return None
    columns = ("network", f"{table.monitor} at least", "published median samples", "published sizes", "here", "sizes")
    return Beside("Beside the published figure", (*columns, "runs below it", "here / published"), tuple(rows))


def options_of(network: str) -> dict[str, str]:
    """Return the options that a run of a published network has, by their names."""
    return dict(option.split("=", 1) for option in network.split())


def shown(networks: Sequence[str]) -> dict[str, str]:
    """Return the options of each network of a file that tables and pictures show.

    Of several networks, these are the options in which they differ; of a single one, all but those of the task.
    """
    several = {*networks}
    common = set.intersection(*({*network.split()} for network in several))
    hidden = common if len(several) > 1 else {option for option in common if option.startswith("task.")}
    return {network: " ".join(x for x in network.split() if x not in hidden) or network for network in networks}


def figure_picture(tables: Sequence[Table]) -> bytes | None:
    """Return a PNG with a panel for each kind of network, published points in grey; None if no run has a point."""
    from matplotlib.figure import Figure

    found = [panel for table in tables for panel in panels(table)]
    if not any(panel.runs for panel in found):
        return None
    figure = Figure(figsize=(3.2 * len(found), 4), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(found), squeeze=False, sharey=True)[0])
    for panel, each in zip(found, axes, strict=True):
        _scatter(each, panel.published, "0.6", "x", "published")
        _scatter(each, [point for point in panel.runs if point.reached], "C0", "o", "here")
        _scatter(each, [point for point in panel.runs if not point.reached], "C3", "v", "here, not reached by then")
        each.set_yscale("log")
        network = options_of(panel.network)
        names = short_names([*network, panel.option])
        each.set_title(f"{labeled(network, names)}: to {panel.at_least:.0%}")
        each.set_xlabel(names[panel.option])
        each.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # of a MaxNLocator
        each.grid(alpha=0.3)
    axes[0].set_ylabel("training samples")
    one_legend(figure, "outside upper center", ncols=3)
    return to_png(figure)


def _scatter(axes: "Axes", points: Sequence[Point], colour: str, marker: str, label: str) -> None:
    if points:
        axes.scatter([p.size for p in points], [p.samples for p in points], c=colour, marker=marker, label=label, s=24)


def published_curves(table: Table) -> list[tuple[str, list[float], list[float]]]:
    """Return published learning curves of the monitored metric on the task of a run: network, samples, values."""
    return [
        (name, curve.samples, curve.metrics[table.monitor])
        for runs, curves in _files(table, "report.curve", read_curves)
        for curve, name in zip(curves, shown([curve.network for curve in curves]).values(), strict=True)
        if table.monitor in curve.metrics and any(_same_task(run, curve.network) for run in runs)
    ]


def _same_task(run: Run, network: str) -> bool:
    return all(holds(run, condition) for condition in network.split() if condition.startswith("task."))


def _files(table: Table, key: str, read: Callable[[str], Read]) -> Iterator[tuple[list[Run], Read]]:
    """Yield the runs of each file that a table's experiments name, and what is in it, if it can still be read."""
    naming: dict[str, list[Run]] = {}
    for run in (run for group in table.groups for run in group.runs):
        if name := run.config.get(key):
            naming.setdefault(str(name), []).append(run)
    for name, runs in naming.items():
        if (found := _read_once(read, name)) is not None:
            yield runs, found


@lru_cache
def _read_once(read: Callable[[str], Read], name: str) -> Read | None:
    """Return what is in a file, or None with a warning: tables, page and picture of a report all ask for it."""
    try:
        return read(name)
    except UserError as error:
        log.warning("left out: %s", error)
        return None
