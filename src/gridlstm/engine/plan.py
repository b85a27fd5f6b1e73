"""The order in which a fast sweep visits a grid, and the buffer rows for the results of every block.

All blocks whose coordinates have the same sum depend only on blocks of smaller sums, so they are computed at once.
Blocks are numbered in the order of computation: block k owns row k of every buffer, and the rows of blocks that are
computed together are contiguous, so one matrix product covers them without copying and without a wasted row. Outputs of
the grid go to the rows after the last block's.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise, product
from math import prod
from typing import Literal

import torch
from torch import Tensor

Order = Literal["diagonal", "layer", "half-step"]
Place = tuple[int, ...]
Runs = tuple[tuple[slice, slice], ...]
"""Contiguous pieces of a diagonal, each with its contiguous target rows."""


@dataclass(frozen=True)
class Diagonal:
    """Blocks that are computed together.

    Args:
        rows: rows of these blocks.
        successors: for each dimension, target rows of (h'_n, m'_n): one or two contiguous runs, or for more runs, which
            need at least three dimensions, one row number per block.
        copies: (weight copy, number of consecutive blocks that use it) in the order of the rows.
    """

    rows: slice
    successors: tuple[Runs | Tensor, ...]
    copies: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of blocks, r."""
        return self.rows.stop - self.rows.start

    @property
    def batched_copies(self) -> slice | None:
        """The weight copies, if they are consecutive and each is used by equally many blocks; else None."""
        numbers, counts = zip(*self.copies, strict=True)
        if len(set(counts)) > 1 or numbers[-1] - numbers[0] != len(numbers) - 1:
            return None
        return slice(numbers[0], numbers[-1] + 1)

    def part(self, start: int, stop: int) -> "Diagonal":
        """Return some of the blocks, numbered from the first of the diagonal; all must share one weight copy."""
        ((copy, _),) = self.copies
        successors: list[Runs | Tensor] = []
        for to in self.successors:
            if isinstance(to, Tensor):
                successors.append(to[start:stop])
                continue
            cut = [
                (max(source.start, start), min(source.stop, stop), target.start - source.start) for source, target in to
            ]
            successors.append(tuple((slice(a - start, b - start), slice(a + d, b + d)) for a, b, d in cut if a < b))
        first = self.rows.start
        return Diagonal(slice(first + start, first + stop), tuple(successors), ((copy, stop - start),))


@dataclass(frozen=True, eq=False)
class Plan:
    """An order of computation of a whole grid.

    Args:
        blocks: number of blocks, C.
        exits: for each dimension, the number of blocks at its far side: rows [C, C + exits) hold the outputs there.
        diagonals: in the order "diagonal", groups of independent blocks, in the order of the rows.
        layers: in the order "layer", for each position along the last axis all its blocks, and their diagonals.
        entries: for each dimension, the rows of the blocks at its near side, in the order of ``sides``.
        successors: for each dimension, the target row of each block's (h'_n, m'_n): (C,).
        order: each block's number in lexicographic order of its coordinates: (C,).
        copy_of: the weight copy of each block: (C,).
        by_copy: rows of each weight copy's blocks.
    """

    blocks: int
    exits: tuple[int, ...]
    diagonals: tuple[Diagonal, ...]
    layers: tuple[tuple[Diagonal, tuple[Diagonal, ...]], ...]
    entries: tuple[Tensor, ...]
    successors: tuple[Tensor, ...]
    order: Tensor
    copy_of: Tensor
    by_copy: tuple[slice | Tensor, ...]

    @property
    def rows(self) -> int:
        """Rows of a buffer that also holds the outputs of the grid."""
        return self.blocks + max(self.exits)

    @property
    def largest(self) -> int:
        """Blocks of the largest diagonal or layer."""
        return max(group.size for group in (*self.diagonals, *(layer for layer, _ in self.layers)))


def _runs(targets: list[int]) -> Runs:
    """Split target rows into contiguous pieces: [7, 8, 9, 4] gives (0..3 to 7..10) and (3..4 to 4..5)."""
    starts = [0, *(i for i in range(1, len(targets)) if targets[i] != targets[i - 1] + 1), len(targets)]
    return tuple((slice(a, b), slice(targets[a], targets[a] + b - a)) for a, b in pairwise(starts))


@lru_cache(maxsize=64)
def plan(
    extents: tuple[int, ...],
    untied: tuple[int, ...],
    device: torch.device,
    order: Order,
    pace: tuple[int, ...] | None = None,
) -> Plan:
    """Number the blocks of a grid.

    Args:
        extents: number of blocks along each dimension, all positive.
        untied: axes along which weights differ; blocks of one diagonal that share weights are adjacent.
        device: device of the row numbers.
        order: "diagonal" and "half-step" go by the sum of all coordinates, "layer" by the last one, then by the sum of
            the others.
        pace: the weight of each coordinate in that sum; None for 1.
    """

    def copy(place: Place) -> Place:
        return tuple(place[axis] for axis in untied)

    def layer(place: Place) -> int:
        return place[-1] if order == "layer" else 0

    def moment(place: Place) -> int:
        return sum(step * coordinate for step, coordinate in zip(pace or (1,) * N, place, strict=True))

    N = len(extents)
    # Reversed coordinates last: in two dimensions both successors of a diagonal are then contiguous.
    places = sorted(
        product(*map(range, extents)), key=lambda place: (layer(place), moment(place), copy(place), place[::-1])
    )
    row = {place: k for k, place in enumerate(places)}
    lexicographic = {place: k for k, place in enumerate(product(*map(range, extents)))}
    copy_numbers = {c: k for k, c in enumerate(product(*(range(extents[axis]) for axis in untied)))}
    sides = [
        [(*rest[:n], 0, *rest[n:]) for rest in product(*(range(e) for axis, e in enumerate(extents) if axis != n))]
        for n in range(N)
    ]
    target = [dict[Place, int]() for _ in range(N)]
    for n in range(N):
        for k, place in enumerate(sides[n]):
            target[n][(*place[:n], extents[n] - 1, *place[n + 1 :])] = len(places) + k
        for place in places:
            if place[n] + 1 < extents[n]:
                target[n][place] = row[(*place[:n], place[n] + 1, *place[n + 1 :])]

    def group(blocks: list[Place]) -> Diagonal:
        successors: list[Runs | Tensor] = []
        for n in range(N):
            targets = [target[n][place] for place in blocks]
            runs = _runs(targets)
            successors.append(runs if len(runs) <= 2 else torch.tensor(targets, device=device))
        copies = tuple((copy_numbers[c], len(list(sharing))) for c, sharing in groupby(blocks, key=copy))
        first = row[blocks[0]]
        return Diagonal(slice(first, first + len(blocks)), tuple(successors), copies)

    def groups(blocks: list[Place]) -> tuple[Diagonal, ...]:
        return tuple(group(list(together)) for _, together in groupby(blocks, key=moment))

    rows_by_copy: dict[Place, list[int]] = {c: [] for c in copy_numbers}
    for k, place in enumerate(places):
        rows_by_copy[copy(place)].append(k)

    def joined(rows: list[int]) -> slice | Tensor:
        contiguous = rows[-1] - rows[0] == len(rows) - 1
        return slice(rows[0], rows[-1] + 1) if contiguous else torch.tensor(rows, device=device)

    layers = [list(together) for _, together in groupby(places, key=layer)]
    numbers = [lexicographic[place] for place in places]
    return Plan(
        blocks=len(places),
        exits=tuple(prod(extents) // extent for extent in extents),
        diagonals=groups(places) if order != "layer" else (),
        layers=tuple((group(blocks), groups(blocks)) for blocks in layers) if order == "layer" else (),
        entries=tuple(torch.tensor([row[place] for place in sides[n]], device=device) for n in range(N)),
        successors=tuple(torch.tensor([target[n][place] for place in places], device=device) for n in range(N)),
        order=torch.tensor(numbers, device=device),
        copy_of=torch.tensor([copy_numbers[copy(place)] for place in places], device=device),
        by_copy=tuple(map(joined, rows_by_copy.values())),
    )


@lru_cache(maxsize=64)
def pieces(plan: Plan, most: int) -> tuple[Diagonal, ...]:
    """Return the diagonals of a plan with one weight copy, each cut into equal pieces of at most this many blocks."""
    parts = []
    for diagonal in plan.diagonals:
        each = -(-diagonal.size // -(-diagonal.size // most))
        parts += [diagonal.part(start, min(start + each, diagonal.size)) for start in range(0, diagonal.size, each)]
    return tuple(parts)
