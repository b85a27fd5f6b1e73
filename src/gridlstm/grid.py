"""The N-dimensional grid as a module: it owns the packed weights and runs a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gridlstm.cell import Cell, HiddenMemory, check_cell
from gridlstm.configured import Configured
from gridlstm.engine.dispatch import (
    SweepName,
    check_masks,
    check_sides,
    check_sweep_fits,
    check_sweep_name,
    check_weights,
    pairs,
    sweep_named,
)
from gridlstm.engine.operands import autocast_type
from gridlstm.errors import UserError, check_at_least_one
from gridlstm.regularizers import Draw, Regularizer, Zoneout, combine
from gridlstm.scan import Block, Masks, Weights, columns_of


@dataclass(frozen=True)
class Dimension:
    """One dimension of a grid.

    Args:
        name: name in parameters and configuration, such as "time".
        cell: the transform along this dimension.
        size: length of the hidden vectors.
        untied_extent: number of blocks along this dimension if each has its own weights; None if they share weights.
        tied: use one weight set for this dimension's transform even if another dimension is untied.
        reverse: run from the last coordinate to the first.
        shares: name of the dimension whose weights to use; None for own weights (section 3.5).
        regularizers: noise on this dimension.
    """

    name: str
    cell: Cell
    size: int
    untied_extent: int | None = None
    tied: bool = False
    reverse: bool = False
    shares: str | None = None
    regularizers: tuple[Regularizer, ...] = ()


class Vectors(nn.ParameterDict):
    """A cell's parameters besides weight and bias, called like a ``Transform``."""

    __call__ = nn.Module.__call__  # ParameterDict's own raises

    def forward(self) -> None:
        """Do nothing: calling the module runs its hooks."""


class Transform(Configured):
    """The parameters of one dimension's transform.

    ``weight`` is (*untied extents, weight_rows, D): rows in the cell's gate order, columns in the order of the grid's
    dimensions. ``bias`` is (*untied extents, num_gates * d), or None if the cell has none. ``vectors`` are the cell's
    other parameters, (*untied extents, length).

    Args:
        own: the columns of H that hold this dimension's own h.
        copies: untied extents.
    """

    def __init__(self, cell: Cell, size: int, fan_in: int, own: slice, copies: tuple[int, ...]) -> None:
        super().__init__()
        self.cell = cell
        self.size = size
        self.own = own
        self.weight = nn.Parameter(torch.empty(*copies, cell.weight_rows(size), fan_in))
        self.bias = nn.Parameter(torch.empty(*copies, cell.num_gates * size)) if cell.has_bias else None
        # Pairs, because ParameterDict sorts the keys of a mapping, and cells define the order of their vectors.
        self.vectors = Vectors(
            [(name, nn.Parameter(torch.empty(*copies, length))) for name, length in cell.vector_lengths(size).items()]
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.cell.reset_parameters(self.weight, self.bias, *self.vectors.values())

    def extra_repr(self) -> str:
        return f"{self.cell}, weight={tuple(self.weight.shape)}"

    def configured(self) -> dict[str, Any]:
        return {} if self.cell.has_bias else {"constant gate biases": self.cell.constants}

    def forward(self) -> None:
        """Do nothing: calling the module before ``packed`` runs the hooks of pruning, spectral and weight norm.

        Returns None because torch's module trackers cannot follow parameters returned unchanged.
        """
        self.vectors()

    def read(self) -> Weights:
        """Return the parameters as they are. Reading a parametrized one computes it, perhaps at random."""
        return Weights(self.weight, self.bias, tuple(self.vectors.values()))

    def packed(self, copies: tuple[int, ...], own: slice | None = None, read: Weights | None = None) -> Weights:
        """Return the weights as a sweep takes them.

        Args:
            copies: untied extents of the grid; a single weight set is expanded to all of them.
            own: the columns of H of another dimension that uses these weights.
            read: the result of ``read``, if the same values are for several dimensions.
        """
        learned, bias, vectors = read or self.read()
        weight = self.cell.expand_weight(learned, own or self.own)
        if bias is None and (constant := self.cell.constant_bias(self.size, learned)) is not None:
            bias = constant.expand(*learned.shape[:-2], -1)
        if learned.dim() == 2 + len(copies):
            return Weights(weight, bias, vectors)

        def expand(x: Tensor) -> Tensor:
            return x.expand(*copies, *x.shape)

        return Weights(expand(weight), bias if bias is None else expand(bias), tuple(map(expand, vectors)))


class Grid(nn.Module):
    """An N-dimensional grid of Grid LSTM blocks (section 3).

    Args:
        dimensions: in the order of the coordinates.
        priority: names of dimensions to compute after all others, in this order (section 3.2); () for none.
        sweep: algorithm: "auto" (the fastest), "reference" (plain loops), "wavefront" (whole diagonals), "recompute"
            (wavefront with a third of the saved memory, three sevenths with priority), "layer-major" (layer after
            layer, for weights untied along the last dimension) or "half-step" (both stages of a priority at once). All
            give the same numbers; only "reference" can be differentiated twice. Where no output that the loss reads
            depends on a weight, its gradient is zero, and None with "reference".

    Attributes:
        progress: completed share of the training, 0 to 1, for regularizers with a schedule; the training code sets it.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], priority: Sequence[str] = (), sweep: SweepName = "auto"
    ) -> None:
        super().__init__()
        check_sweep_name(sweep)
        self.sweep: SweepName = sweep
        _check_dimensions(dimensions, priority)
        names = [dimension.name for dimension in dimensions]
        first = tuple(n for n, name in enumerate(names) if name not in priority)
        later = tuple((names.index(name),) for name in priority)
        self.block = Block(
            cells=tuple(dimension.cell for dimension in dimensions),
            sizes=tuple(dimension.size for dimension in dimensions),
            stages=(first, *later) if first else later,
            untied=tuple(n for n, d in enumerate(dimensions) if d.untied_extent is not None),
            same=tuple(
                (n, names.index(d.shares))
                for n, d in enumerate(dimensions)
                # A cell with its own expand_weight has a different weight along every dimension.
                if d.shares is not None
                and not {d.name, d.shares} & set(priority)
                and type(d.cell).expand_weight is Cell.expand_weight
            ),
        )
        check_sweep_fits(sweep, self.block)
        copies = tuple(d.untied_extent for d in dimensions if d.untied_extent is not None)
        self.transforms = nn.ModuleDict(
            {
                d.name: Transform(d.cell, d.size, sum(self.block.sizes), columns, () if d.tied else copies)
                for d, columns in zip(dimensions, columns_of(self.block), strict=True)
                if d.shares is None
            }
        )
        self.copies = copies
        self.sources = [d.name if d.shares is None else d.shares for d in dimensions]
        self.regularizers = [tuple(d.regularizers) for d in dimensions]
        self.priority = tuple(priority)
        self.progress = 0.0
        self.reversed = [n for n, dimension in enumerate(dimensions) if dimension.reverse]

    def forward(
        self, sides: Sequence[tuple[Tensor, Tensor]], extents: Sequence[int], masks: Sequence[Masks] | None = None
    ) -> list[HiddenMemory]:
        """Return the outputs of the grid along each dimension, given its inputs: see ``scan``.

        Sides and masks use the coordinates of the data, also for reversed dimensions. Sides may be plain tuples, and
        float masks may have any precision.

        Raises:
            UserError: if shapes, data types or devices of sides or masks do not fit the grid.
        """
        entering = pairs(sides)
        transforms = cast(dict[str, Transform], self.transforms)
        for transform in transforms.values():
            transform()
        read = {name: transform.read() for name, transform in transforms.items()}
        weights = [
            transforms[source].packed(self.copies, own, read[source])
            for source, own in zip(self.sources, columns_of(self.block), strict=True)
        ]
        if autocast_type(weights[0].weight) is not None:
            # States and sums stay in the weights' precision; autocast changes only the type of the products.
            entering = [HiddenMemory(*(x.to(weights[0].weight.dtype) for x in side)) for side in entering]
        check_sides(self.block, entering, extents)
        self._check_weights(weights[0].weight, entering[0].h, extents)
        for source, each in zip(self.sources, weights, strict=True):
            check_weights(f"dimension {source!r}", each, weights[0].weight)
        if masks is not None:
            check_masks(self.block, masks, extents, entering[0].h)
        masks = self._with_noise(masks, extents, entering[0].h)
        masks = masks and [mask.in_type(entering[0].h.dtype) for mask in masks]
        if self.reversed:
            entering, weights = self._flip_sides(entering), [Weights(*map(self._flip_copies, w)) for w in weights]
            masks = masks and [Masks(*(x if x is None else self._flip_mask(x) for x in mask)) for mask in masks]
        leaving = sweep_named(self.sweep, self.block, extents, entering[0].h, masks)(
            self.block, weights, entering, extents, masks
        )
        return self._flip_sides(leaving) if self.reversed else leaving

    def extra_repr(self) -> str:
        noise = f", regularizers={self.regularizers}" if any(self.regularizers) else ""
        return f"priority={self.priority}, sweep={self.sweep}{noise}"

    def _check_weights(self, weight: Tensor, like: Tensor, extents: Sequence[int]) -> None:
        """Raise UserError unless the weights have the sides' type and device, and one copy per untied block."""
        if (like.dtype, like.device) != (weight.dtype, weight.device):
            raise UserError(
                f"expected sides as {weight.dtype} on {weight.device} like the weights, got {like.dtype} on "
                f"{like.device}. Convert them with .to(...)."
            )
        if (found := tuple(extents[axis] for axis in self.block.untied)) != self.copies:
            raise UserError(
                f"expected extents {self.copies} along the untied dimensions {self.block.untied}, "
                f"where every block has its own weights, got {found}."
            )

    def _with_noise(
        self, masks: Sequence[Masks] | None, extents: Sequence[int], like: Tensor
    ) -> Sequence[Masks] | None:
        """Combine the given masks with those that the regularizers draw."""
        if not any(self.regularizers):
            return masks
        combined = []
        for n, regularizers in enumerate(self.regularizers):
            size = self.block.sizes[n]
            memory_size = self.block.cells[n].memory_size(size)
            draw = Draw(n, tuple(extents), like.shape[-2], size, memory_size, like, self.training, self.progress)
            given = [] if masks is None else [masks[n]]
            combined.append(combine([*given, *(regularizer.masks(draw) for regularizer in regularizers)]))
        if all(mask == Masks() for mask in combined):
            return None
        check_masks(self.block, combined, extents, like)
        return combined

    def _flip_sides(self, sides: Sequence[HiddenMemory]) -> list[HiddenMemory]:
        """Mirror the coordinates of reversed dimensions. A side has no axis for its own dimension."""
        axes = [[n - (n > own) for n in self.reversed if n != own] for own in range(len(sides))]
        return [HiddenMemory(h.flip(at), m.flip(at)) for (h, m), at in zip(sides, axes, strict=True)]

    def _flip_copies(self, x: Tensor | tuple[Tensor, ...] | None) -> Any:
        if isinstance(x, tuple):
            return tuple(self._flip_copies(each) for each in x)
        return x if x is None else x.flip([k for k, n in enumerate(self.block.untied) if n in self.reversed])

    def _flip_mask(self, mask: Tensor) -> Tensor:
        leading = len(self.block.cells) + 2 - mask.dim()  # a mask broadcasts from the right
        return mask.flip([n - leading for n in self.reversed if n >= leading])


def _check_dimensions(dimensions: Sequence[Dimension], priority: Sequence[str]) -> None:
    """Raise UserError unless names are valid and unique, and cells, noise and shared weights fit."""
    taken = nn.ModuleDict()
    for d in dimensions:
        if not isinstance(d.name, str) or not d.name or "." in d.name or hasattr(taken, d.name):
            raise UserError(
                f"the name of a dimension must be a word without dots that is not an attribute of "
                f"torch.nn.ModuleDict, such as 'time', got {d.name!r}."
            )
    names = [d.name for d in dimensions]
    if not names or len(set(names)) < len(names):
        raise UserError(f"a grid needs dimensions with different names, got {', '.join(names) or 'none'}.")
    for d in dimensions:
        check_cell(f"the cell of dimension {d.name!r}", d.cell)
        check_at_least_one(**{f"size of dimension {d.name!r}": d.size})
        if d.untied_extent is not None:
            check_at_least_one(**{f"untied_extent of dimension {d.name!r}": d.untied_extent})
        for regularizer in d.regularizers:
            if not isinstance(regularizer, Regularizer):
                raise UserError(
                    f"the noise on dimension {d.name!r} must be of class gridlstm.regularizers.Regularizer, such as "
                    f"Dropout(0.1), got {regularizer!r}."
                )
            if isinstance(regularizer, Zoneout) and regularizer.m > 0 and d.cell.memory_size(d.size) == 0:
                raise UserError(
                    f"dimension {d.name!r} has no memory for zoneout to keep: expected m=0 or a cell with memory, "
                    f"got m={regularizer.m} and {d.cell}."
                )
    if isinstance(priority, str) or not isinstance(priority, Sequence):
        raise UserError(f"priority must be a list of dimension names, such as ['depth'], got {priority!r}.")
    if unknown := [name for name in priority if name not in names]:
        raise UserError(f"priority must name dimensions of the grid ({', '.join(names)}), got {unknown[0]!r}.")
    if len(set(priority)) < len(priority):
        raise UserError(f"priority must name each dimension once, got {', '.join(priority)}.")
    owners = {d.name: d for d in dimensions if d.shares is None}
    for d in dimensions:
        if d.shares is None:
            continue
        if (owner := owners.get(d.shares)) is None:
            raise UserError(
                f"dimension {d.name!r}: shares must name a dimension with its own weights "
                f"({', '.join(owners)}), got {d.shares!r}."
            )
        if (owner.size, owner.cell) != (d.size, d.cell):
            raise UserError(
                f"dimension {d.name!r} shares the weights of {owner.name!r}, so it needs the same cell and size: "
                f"expected {owner.cell} of size {owner.size}, got {d.cell} of size {d.size}."
            )
        if owner.tied != d.tied:
            raise UserError(
                f"dimension {d.name!r} shares the weights of {owner.name!r}, so it must be tied like it: expected "
                f"tied={owner.tied}, got tied={d.tied}."
            )
