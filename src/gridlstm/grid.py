"""The N-dimensional grid as a module: it owns the packed weights and runs a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gridlstm.cell import Cell, HiddenMemory
from gridlstm.dispatch import SweepName, check_sides, check_sweep_name, sweep_named
from gridlstm.errors import UserError
from gridlstm.scan import Block, Weights


@dataclass(frozen=True)
class Dimension:
    """One dimension of a grid.

    Args:
        name: as it is called in parameters and configuration, such as "time".
        cell: the transform along it.
        size: length of its hidden vectors.
        untied_extent: None where blocks along it share their weights, else the number of blocks along it, each with
            weights of its own.
    """

    name: str
    cell: Cell
    size: int
    untied_extent: int | None = None


class Transform(nn.Module):
    """The parameters of one dimension's transform.

    ``weight`` is (*untied extents, num_gates * d, D), packed in the cell's gate order, its columns in the order of the
    grid's dimensions; ``bias``, where the cell has one, is (*untied extents, num_gates * d).
    """

    def __init__(self, cell: Cell, size: int, fan_in: int, copies: tuple[int, ...]) -> None:
        super().__init__()
        self.cell = cell
        self.weight = nn.Parameter(torch.empty(*copies, cell.num_gates * size, fan_in))
        self.bias = nn.Parameter(torch.empty(*copies, cell.num_gates * size)) if cell.has_bias else None
        constant = cell.constant_bias(size)
        self.register_buffer(
            "constant", None if constant is None else constant.expand(*copies, -1).clone(), persistent=False
        )
        self.constant: Tensor | None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.cell.reset_parameters(self.weight, self.bias)

    @property
    def packed(self) -> Weights:
        return Weights(self.weight, self.constant if self.bias is None else self.bias)


class Grid(nn.Module):
    """An N-dimensional grid of Grid LSTM blocks (section 3).

    Args:
        dimensions: in the order of the coordinates.
        priority: names of the dimensions that are computed after all others, in that order (section 3.2); () for none.
        sweep: how to compute it: "auto" takes the fastest, "reference" plain loops, "wavefront" whole diagonals,
            "recompute" the latter with a third of the saved memory. All give the same numbers; only "reference" can
            be differentiated twice.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], priority: Sequence[str] = (), sweep: SweepName = "auto"
    ) -> None:
        super().__init__()
        check_sweep_name(sweep)
        self.sweep: SweepName = sweep
        names = [dimension.name for dimension in dimensions]
        if unknown := [name for name in priority if name not in names]:
            raise UserError(f"priority must name dimensions of the grid ({', '.join(names)}), got {unknown[0]!r}.")
        first = tuple(n for n, name in enumerate(names) if name not in priority)
        later = tuple((names.index(name),) for name in priority)
        copies = tuple(d.untied_extent for d in dimensions if d.untied_extent is not None)
        fan_in = sum(dimension.size for dimension in dimensions)
        self.transforms = nn.ModuleDict({d.name: Transform(d.cell, d.size, fan_in, copies) for d in dimensions})
        self.block = Block(
            cells=tuple(dimension.cell for dimension in dimensions),
            sizes=tuple(dimension.size for dimension in dimensions),
            stages=(first, *later) if first else later,
            untied=tuple(n for n, d in enumerate(dimensions) if d.untied_extent is not None),
        )

    def forward(self, sides: Sequence[HiddenMemory], extents: Sequence[int]) -> list[HiddenMemory]:
        """What leaves the grid along each dimension, given what enters: see ``scan``.

        Raises:
            UserError: when shapes, data types or devices of the sides do not fit the grid.
        """
        weights = [cast(Transform, transform).packed for transform in self.transforms.values()]
        check_sides(self.block, sides, extents)
        return sweep_named(self.sweep)(self.block, weights, sides, extents)
