"""Scores against the depth of the network and the size of the task, as in the paper's figures."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from gridlstm.files import to_png
from gridlstm.report.drawing import LAYERS, SIZES, labeled, one_legend, short_names, wide
from gridlstm.report.runs import SOLVED
from gridlstm.report.tables import Group, Table, judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALIASES = {"task.network.num_layers"}
"""Other names of the depth, which a sweep may use."""

_MOST_NAMED = 20
"""Largest number of kinds of networks that are all named below the picture."""


class _Mark(NamedTuple):
    """One run."""

    kind: str
    """Network and options without the sizes."""
    sizes: dict[str, float]
    samples: int
    """Samples until the task was solved, or all samples of the run."""
    best: float
    solved: bool
    """True for a full mark, False for a hollow one."""


def size_picture(tables: Sequence[Table]) -> bytes | None:
    """Return a PNG with one mark for each run that has a criterion, hollow if the task was not solved.

    Every size that varies has a row: the samples to solve (all samples of the run if it was not solved) and the best
    value of the monitored metric, with lines through the means over seeds. If depth and another size vary, one more row
    shows which sizes were solved at which depth, like the paper's figure of parity. Return None if no run had a
    criterion, or all have the same sizes.
    """
    from matplotlib.figure import Figure

    marks = [mark for table in tables for mark in _marks(table)]
    keys = [key for key in SIZES if len({m.sizes[key] for m in marks if key in m.sizes}) > 1]
    if not keys:
        return None
    others = [key for key in keys if key != LAYERS == keys[0] and any({LAYERS, key} <= set(m.sizes) for m in marks)]
    kinds = list(dict.fromkeys(mark.kind for mark in marks))
    labels = 2 * len(kinds) if len(kinds) <= _MOST_NAMED else 0
    figure = Figure(figsize=(12, 4 * (len(keys) + len(others)) + 0.2 * labels), layout="constrained")
    rows = figure.subplots(len(keys) + len(others), 2, squeeze=False)
    metrics = " or ".join({table.monitor: None for table in tables})
    for (left, right), key in zip(rows, keys, strict=False):
        here = [mark for mark in marks if key in mark.sizes]
        for axes, values, name in (
            (left, [m.samples for m in here], "training samples to solve"),
            (right, [m.best for m in here], f"best {metrics}"),
        ):
            points = [(m.sizes[key], value, m) for m, value in zip(here, values, strict=True)]
            _draw(axes, kinds, points, SIZES[key], name)
            _draw_means(axes, kinds, points)
        left.set_yscale("log")
    for (left, right), key in zip(rows[len(keys) :], others, strict=True):
        here = [mark for mark in marks if {LAYERS, key} <= set(mark.sizes)]
        _draw(left, kinds, [(m.sizes[LAYERS], m.sizes[key], m) for m in here], SIZES[LAYERS], SIZES[key])
        right.remove()
    if labels:
        one_legend(figure, "outside lower center", fontsize="small")
    return to_png(figure)


def depth_picture(tables: Sequence[Table]) -> bytes | None:
    """Return a PNG of scores against the number of layers, with one mark for each completed run without a criterion.

    Every table in which a kind of network has several depths has a row: the best value of the monitored metric and its
    value in the test, with lines through the means over seeds. Where the largest score is more than ten times the
    smallest, the axis is logarithmic. Return None if there is no such table.
    """
    from matplotlib.figure import Figure

    found = [(table, _scores(table)) for table in tables]
    found = [(table, scores) for table, scores in found if _depths_vary([mark for mark, _ in scores])]
    if not found:
        return None
    figure = Figure(figsize=(12, 4 * len(found)), layout="constrained")
    for (left, right), (table, scores) in zip(figure.subplots(len(found), 2, squeeze=False), found, strict=True):
        kinds = list(dict.fromkeys(mark.kind for mark, _ in scores))
        best = [(mark.sizes[LAYERS], mark.best, mark) for mark, _ in scores]
        tested = [(mark.sizes[LAYERS], test, mark) for mark, test in scores if test is not None]
        for axes, name, points in ((left, f"best {table.monitor}", best), (right, _tested(table.monitor), tested)):
            if not points:
                axes.remove()
                continue
            _draw(axes, kinds, points, SIZES[LAYERS], table.named(name))
            _draw_means(axes, kinds, points)
            if wide(value for _, value, _ in points):  # one failed run would flatten all others
                axes.set_yscale("log")
            depths = sorted({x for x, _, _ in points})
            axes.set_xscale("log", base=2)  # depths are usually doubled
            axes.set_xticks(depths, [f"{x:g}" for x in depths])
        left.legend(fontsize="small")
    return to_png(figure)


def _depths_vary(marks: Sequence[_Mark]) -> bool:
    """Return True if a kind of network has several depths."""
    return len({(mark.kind, mark.sizes[LAYERS]) for mark in marks}) > len({mark.kind for mark in marks})


def _scores(table: Table) -> list[tuple[_Mark, float | None]]:
    """Return a full mark for each completed run without a criterion, and its test score; None if it has none."""
    scores = []
    for group in table.groups:
        for run in group.completed:
            best, layers = run.result.get("best", {}).get(table.monitor), run.config.get(LAYERS)
            if SOLVED not in run.result and best is not None and isinstance(layers, int | float):
                sizes, samples = {LAYERS: float(layers)}, run.result.get("samples", 0)
                mark = _Mark(_kind(table, group), sizes, samples, best, solved=True)
                scores.append((mark, run.result.get("test", {}).get(_tested(table.monitor))))
    return scores


def _tested(monitor: str) -> str:
    """Return the test's name of a metric of the validation."""
    return f"test/{monitor.removeprefix('val/')}"


def _kind(table: Table, group: Group) -> str:
    """Return the label of a group without the sizes."""
    settings = {key: value for key, value in group.settings.items() if key not in {*SIZES, *_ALIASES}}
    return labeled(settings, short_names(table.varied)) or group.runs[0].setting("model")


def _marks(table: Table) -> Iterable[_Mark]:
    for group in table.groups:
        for run in judged(group):
            best = run.result.get("best", {}).get(table.monitor)
            if "samples" not in run.result or best is None:
                continue
            sizes = {key: float(size) for key in SIZES if isinstance(size := run.config.get(key), int | float)}
            samples, solved = run.result[SOLVED] or run.result["samples"], run.result[SOLVED] is not None
            yield _Mark(table.named(_kind(table, group)), sizes, samples, best, solved)


def _draw_means(axes: "Axes", kinds: list[str], points: Sequence[tuple[float, float, _Mark]]) -> None:
    """Draw a line for each kind through the means over all runs of a size, solved or not."""
    for n, kind in enumerate(kinds):
        by_size: dict[float, list[float]] = {}
        for size, value, mark in sorted(points, key=lambda point: point[0]):
            if mark.kind == kind:
                by_size.setdefault(size, []).append(value)
        axes.plot(list(by_size), [fmean(some) for some in by_size.values()], color=f"C{n % 10}", alpha=0.4, zorder=1)


def _draw(axes: "Axes", kinds: list[str], points: Sequence[tuple[float, float, _Mark]], x: str, y: str) -> None:
    """Draw one mark for each run in the color of its kind; marks of different kinds are side by side."""
    width = max(p[0] for p in points) - min(p[0] for p in points)
    for n, kind in enumerate(kinds):
        aside = width * 0.02 * ((n + 0.5) / len(kinds) - 0.5)
        for solved in (True, False):
            if some := [(a + aside, b) for a, b, mark in points if (mark.kind, mark.solved) == (kind, solved)]:
                face = f"C{n % 10}" if solved else "none"
                label = kind if solved else f"{kind}: not solved"
                form = "os"[n // 10 % 2]  # there are only ten colors
                axes.scatter(
                    *zip(*some, strict=True), label=label, marker=form, facecolors=face, edgecolors=f"C{n % 10}"
                )
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # it is a MaxNLocator
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
