"""Frequency of closed and open gates: the saturation of Karpathy et al. 2015 (arXiv 1506.02078, figure 2).

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.cell import LSTM, Cell, lstm_gates
from gridlstm.cells import CoupledLSTM, LayerNormLSTM
from gridlstm.errors import UserError
from gridlstm.files import write_csv, write_png

LEFT, RIGHT = 0.1, 0.9
COUNTED = (LSTM, LayerNormLSTM, CoupledLSTM)
"""Cells with gates u, f and o that depend only on z."""


class Saturation(NamedTuple):
    """Shares of the activations of one gate, (L, d) each."""

    dimension: str
    gate: str
    left: Tensor
    """below 0.1"""
    right: Tensor
    """above 0.9"""


def gates(cell: Cell, z: Tensor) -> dict[str, Tensor]:
    """Return a cell's gates by name, each (..., d), given its z from ``watch.Seen``, (..., num_gates * d).

    Raises:
        UserError: if the cell has no gates u, f and o that depend only on z.
    """
    if type(cell) in (LSTM, LayerNormLSTM):
        u, f, o, _ = lstm_gates(z)
        return {"u": u, "f": f, "o": o}
    if type(cell) is CoupledLSTM:
        f, o, _ = z.chunk(3, dim=-1)
        return {"u": 1 - f.sigmoid(), "f": f.sigmoid(), "o": o.sigmoid()}
    raise UserError(
        f"gates cannot be counted in {type(cell).__name__} cells. Expected LSTM, LayerNormLSTM or CoupledLSTM."
    )


def saturation(dimension: str, cell: Cell, z: Tensor) -> list[Saturation]:
    """Return the saturation of every gate over all steps and rows of z (T, L, B, num_gates * d)."""
    return [
        Saturation(dimension, name, (g < LEFT).double().mean((0, 2)), (g > RIGHT).double().mean((0, 2)))
        for name, g in gates(cell, z).items()
    ]


def of_sequences(z: Tensor, inside: Tensor) -> Tensor:
    """Return the entries of z (T, L, B, num_gates * d) at steps inside sequences (B, T), as steps of one row."""
    return z.transpose(1, 2)[inside.T][:, :, None]


def joined(parts: Sequence[tuple[int, list[Saturation]]]) -> list[Saturation]:
    """Combine several parts, each given as its number of steps and its saturations, into means over all steps."""
    steps = torch.tensor([count for count, _ in parts], dtype=torch.double)

    def mean(shares: list[Tensor]) -> Tensor:
        return torch.tensordot(steps / steps.sum(), torch.stack(shares), dims=1)

    return [
        same[0]._replace(left=mean([each.left for each in same]), right=mean([each.right for each in same]))
        for same in zip(*(found for _, found in parts), strict=True)
    ]


def write(found: list[Saturation], out: Path) -> list[Path]:
    """Write gates.csv by layer, gate_units.csv by unit, and gates.png."""
    paths = [out / "gates.csv", out / "gate_units.csv", out / "gates.png"]
    shares = [f"share < {LEFT}", f"share > {RIGHT}"]
    write_csv(paths[0], [["dimension", "layer", "gate", *shares], *_by_layer(found)])
    write_csv(paths[1], [["dimension", "layer", "unit", "gate", *shares], *_by_unit(found)])
    _draw(found, paths[2])
    return paths


def _by_layer(found: list[Saturation]) -> Iterator[tuple[object, ...]]:
    for dimension, gate, left, right in found:
        for layer, (low, high) in enumerate(zip(left.mean(1).tolist(), right.mean(1).tolist(), strict=True), 1):
            yield dimension, layer, gate, low, high


def _by_unit(found: list[Saturation]) -> Iterator[tuple[object, ...]]:
    for dimension, gate, left, right in found:
        for layer, (lows, highs) in enumerate(zip(left.tolist(), right.tolist(), strict=True), 1):
            for unit, shares in enumerate(zip(lows, highs, strict=True)):
                yield dimension, layer, unit, gate, *shares


def _draw(found: list[Saturation], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    dimensions = list(dict.fromkeys(each.dimension for each in found))
    figure = Figure(figsize=(10, 3.4 * len(dimensions)), layout="constrained")
    grid = figure.subplots(len(dimensions), 3, squeeze=False, sharex=True, sharey=True)
    for dimension, gate, left, right in found:
        axes = grid[dimensions.index(dimension)]["ufo".index(gate)]
        for layer, (lows, highs) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            colour = colormaps["viridis"](layer / max(1, len(left) - 1))
            axes.scatter(lows, highs, s=9, alpha=0.6, color=colour, label=f"layer {layer + 1}")
        axes.plot([0, 1], [1, 0], color="grey", linewidth=0.7)  # always saturated
        axes.set_title(f"{dimension}: {gate}")
        axes.set_xlabel(f"share < {LEFT}")
        axes.set_ylabel(f"share > {RIGHT}")
    if len(found[0].left) <= 12:
        grid[0][0].legend(fontsize="x-small")
    write_png(path, figure)
