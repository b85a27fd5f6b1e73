"""The picture of vanishing gradients: contributions through time and depth, for new and trained networks."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.data.spec import Spec
from gridlstm.errors import UserError
from gridlstm.files import write_csv, write_png
from gridlstm.look.gradients import Contributions, through_depth, through_time
from gridlstm.look.load import Trained, new, test_batches, text_of, windows
from gridlstm.models.base import VectorModel
from gridlstm.tasks.classify_vector import EachStep
from gridlstm.tasks.sequence import SequenceTask

log = logging.getLogger(__name__)

ROWS = 8
"""Largest number of sequences to average norms over."""
SYMBOLS = 64
"""Distinct symbols that a new network reads, uniform and independent; without time, length of a vector of -1 and 1."""
TIME_LAYERS = 2
"""Layers of a new network for gradients through time."""
BEFORE = 10
"""Steps that a new network has read before gradients through depth are taken."""

SINGLE = 1e-45
"""The smallest number of single precision: lower bound of the picture, but not of the table."""


class Curve(NamedTuple):
    """Contributions of one network."""

    model: str
    stage: str
    """start or trained"""
    along: str
    """time or depth"""
    norms: Contributions


def curves_of_new(models: Sequence[str], steps: int, layers: int, overrides: Sequence[str]) -> list[Curve]:
    """Return curves of untrained networks: ``steps`` through time with 2 layers, and ``layers`` through depth.

    Curves that a network does not support are skipped and logged.

    Raises:
        UserError: if a model does not exist, or no network supports any curve.
    """
    curves = []
    for name in models:
        generator = torch.Generator().manual_seed(1)
        symbols = torch.randint(SYMBOLS, (ROWS, steps), generator=generator)
        targets = torch.randint(SYMBOLS, (ROWS,), generator=generator)
        task = new(name, Spec(SYMBOLS, SYMBOLS, steps), [f"model.num_layers={layers}", *overrides])
        if not isinstance(task.model, VectorModel):
            shallow = new(name, Spec(SYMBOLS, SYMBOLS, steps), [f"model.num_layers={TIME_LAYERS}", *overrides])
            curves += _curves(name, "time", {"start": shallow}, symbols, targets)
            curves += _curves(name, "depth", {"start": task}, symbols[:, : BEFORE + 1], targets)
        else:
            signs = torch.randint(2, (ROWS, SYMBOLS), generator=generator) * 2.0 - 1
            curves += _curves(name, "depth", {"start": task}, signs, targets)
    _check_some(curves, models)
    return curves


def curves_of_trained(runs: Sequence[Trained], steps: int | None) -> list[Curve]:
    """Return curves of trained networks, at the start and the end of their runs, on their own test data.

    Curves that a network does not support are skipped and logged.

    Args:
        steps: length of a piece of text (500, or all of a shorter text); None for other tasks, whose data has a length.

    Raises:
        UserError: if ``steps`` is given for data with a length, or exceeds the text, or no network supports any curve.
    """
    curves = []
    for run in runs:
        if run.data.vocabulary is not None:
            text = text_of(run)
            x, targets = windows(text, ROWS, steps or max(1, min(500, len(text.ids) - 1)))
        elif steps is not None:
            raise UserError(f"the sequences of {type(run.data).__name__} have a fixed length. Remove steps.")
        else:
            batch = next(test_batches(run.data))
            last = int(batch.answer_mask.any(0).nonzero().max())  # step of the last scored answer
            rows = batch.answer_mask[:, last].nonzero()[:ROWS, 0]  # sequences that reach it
            x, targets = batch.inputs[rows, : last + 1], batch.targets[rows, last]
        stages = {"start": run.start, "trained": run.task}
        if not isinstance(run.task.model, EachStep):
            curves += _curves(run.name, "time", stages, x, targets)
        curves += _curves(run.name, "depth", stages, x, targets)
    _check_some(curves, [run.name for run in runs])
    return curves


def _curves(name: str, along: str, stages: Mapping[str, SequenceTask], x: Tensor, targets: Tensor) -> list[Curve]:
    """Return one curve per stage of a network; if the network does not support it, log that and return none."""
    through = _through_time if along == "time" else _through_depth
    try:
        return [Curve(name, stage, along, through(task, x, targets)) for stage, task in stages.items()]
    except UserError as error:
        log.warning("%s has no curve through %s: %s", name, along, error)
        return []


def _check_some(curves: Sequence[Curve], names: Sequence[str]) -> None:
    if not curves:
        raise UserError(f"none of these models exposes gradients: {', '.join(names)}. Use a grid or a stacked LSTM.")


# In double precision: vanishing gradients are far below the range of single precision.
def _through_time(task: SequenceTask, x: Tensor, targets: Tensor) -> Contributions:
    task.double()
    return through_time(task.model, task.head, _double(x), targets)


def _through_depth(task: SequenceTask, x: Tensor, targets: Tensor) -> Contributions:
    task.double()
    if isinstance(task.model, EachStep):  # a network without time: the last step is independent of the others
        return through_depth(task.model.model, task.head, _double(x[:, -1]), targets)
    return through_depth(task.model, task.head, _double(x), targets)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def write(curves: Sequence[Curve], out: Path) -> list[Path]:
    """Write gradients.csv and gradients.png."""
    columns = ["model", "stage", "along", "index", "back", "norm of dL/dh", "norm of dL/dm"]
    paths = [out / "gradients.csv", out / "gradients.png"]
    write_csv(paths[0], [columns, *_rows(curves)])
    _draw(curves, paths[1])
    return paths


def _rows(curves: Sequence[Curve]) -> Iterator[tuple[object, ...]]:
    for model, stage, along, (h, m) in curves:
        first = 0 if along == "time" else 1
        for i, norm in enumerate(h.tolist()):
            memory = None if m is None else m[i].item()
            yield model, stage, along, i + first, len(h) - i - (along == "depth"), norm, memory


def _draw(curves: Sequence[Curve], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    stages = list(dict.fromkeys(curve.stage for curve in curves))
    alongs = [along for along in ("time", "depth") if any(curve.along == along for curve in curves)]
    models = list(dict.fromkeys(curve.model for curve in curves))
    # Side by side: before and after training, or for new networks time and depth.
    shape = (len(alongs), len(stages)) if len(stages) > 1 else (1, len(alongs))
    figure = Figure(figsize=(5.5 * shape[1], 4 * shape[0]), layout="constrained")
    axes_of = dict(
        zip(
            [(along, stage) for along in alongs for stage in stages],
            figure.subplots(*shape, squeeze=False, sharey="row").flat,
            strict=True,
        )
    )
    for model, stage, along, (h, m) in curves:
        axes, colour = axes_of[along, stage], f"C{models.index(model) % 10}"
        back = [len(h) - i - (along == "depth") for i in range(len(h))]
        for norms, style in ((h, "-"), (m, "--")):
            if norms is not None:
                positive = norms.where(norms > 0, torch.nan)  # a logarithmic axis cannot show 0
                axes.plot(back, positive.tolist(), style, color=colour, label=model if style == "-" else None)
    for (along, stage), axes in axes_of.items():
        if along == "depth":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(axes.get_ylim()[0], SINGLE))
        axes.set_xlabel("steps before the loss" if along == "time" else "layers below the top")
        axes.set_ylabel("norm of $dL_T/dh_i$ (dashed: $dL_T/dm_i$)")
        axes.set_title(f"through {along}, " + ("at the start" if stage == "start" else "after training"))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    write_png(path, figure)
