"""Recording of every cell's computation, block by block and differentiable.

Shape legend: B batch rows, T time steps, L layers, d hidden size, G gates of a cell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gridlstm.cell import Cell, HiddenMemory
from gridlstm.cells import LayerNormLSTM
from gridlstm.errors import UserError
from gridlstm.models.grid1d import Grid1d
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.regularizers import Zoneout
from gridlstm.tasks.classify_vector import EachStep


class Seen(NamedTuple):
    """One call of a cell."""

    z: Tensor
    """(B, G d) pre-activations, after the cell's normalization if it has one"""
    h: Tensor
    """(B, d) output of the block"""
    m: Tensor
    """(B, memory size)"""


@dataclass
class Dimension:
    """All calls of one dimension's cell."""

    cell: Cell
    layer_major: bool
    """True if all steps of a layer run before the next layer; otherwise all layers of a step run first."""
    calls: list[Seen] = field(default_factory=list)

    def by_step(self, steps: int) -> list[list[Seen]]:
        """Return ``calls[t][l]`` for a sequence of this many steps."""
        if self.layer_major:
            return [self.calls[t::steps] for t in range(steps)]
        layers = len(self.calls) // steps
        return [self.calls[i : i + layers] for i in range(0, len(self.calls), layers)]


@dataclass(frozen=True)
class _Watched(Cell):
    """A cell that records its calls.

    It passes copies of h' and m' on, which only the rest of the network reads. The gradient with respect to a copy is
    the gradient of the vector between two blocks, without the part by which h' depends on m'.
    """

    seen: Dimension

    def memory_size(self, size: int) -> int:
        return self.seen.cell.memory_size(size)

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        new = self.seen.cell.pointwise(z, h, m, *vectors)
        passed = HiddenMemory(new.h.clone(), new.m.clone())
        if isinstance(self.seen.cell, LayerNormLSTM):
            z = self.seen.cell.preactivations(z, *vectors)
        self.seen.calls.append(Seen(z, *passed))
        return passed

    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        self.seen.cell.reset_parameters(weight, bias, *vectors)


@contextmanager
def watching(model: nn.Module, vectors: bool = True) -> Iterator[dict[str, Dimension]]:
    """Record every cell inside the block; a grid uses its reference sweep there, a stacked LSTM its plain loop.

    Args:
        vectors: true if h and m will be used; false if only z.

    Yields:
        The dimensions that have a cell, by name: "time" and "depth". Their calls are added while the model runs.

    Raises:
        UserError: if the kind of model is not supported, or it mixes a cell's new h and m with earlier ones.
    """
    if isinstance(model, EachStep):
        model = model.model
    if isinstance(model, StackedLSTM):
        own = model.cell
        seen = {"time": Dimension(own, layer_major=True)}
        model.cell = _Watched(seen["time"])
        try:
            yield seen
        finally:
            model.cell = own
        return
    if not isinstance(model, Grid2d | Grid1d):
        raise UserError(
            f"the cells of {type(model).__name__} cannot be recorded. Expected a grid (model=grid1d or grid2d) or a "
            f"stacked LSTM."
        )
    grid = model.grid
    if vectors and any(isinstance(each, Zoneout) for own in grid.regularizers for each in own):
        raise UserError("Zoneout mixes a cell's h and m with earlier ones, so they cannot be recorded. Use what=gates.")
    block, sweep = grid.block, grid.sweep
    names = ("time", "depth") if isinstance(model, Grid2d) else ("depth",)
    seen = {name: Dimension(cell, layer_major=False) for name, cell in zip(names, block.cells, strict=True)}
    grid.block, grid.sweep = replace(block, cells=tuple(_Watched(each) for each in seen.values())), "reference"
    try:
        yield seen
    finally:
        grid.block, grid.sweep = block, sweep


def stacked(calls: list[list[Seen]], name: str) -> Tensor:
    """Return (T, L, B, ...) of "z", "h" or "m"."""
    return torch.stack([torch.stack([getattr(seen, name) for seen in step]) for step in calls])
