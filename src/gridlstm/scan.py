"""The reference sweep: plain loops over the cells of an N-dimensional grid.

This is the specification. It is short rather than fast; every faster sweep equals it in value and gradient.

Shape legend: N dimensions, B batch rows, d_n size of dimension n, D = d_1 + ... + d_N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import Cell, HiddenMemory


@dataclass(frozen=True)
class Block:
    """The structure of one block, the same everywhere in the grid.

    Args:
        cells: one a dimension.
        sizes: d_n, one a dimension.
        stages: the order in which a block computes its dimensions. Dimensions of one stage see the same H; those of a
            later stage see the h' of all earlier ones. ``((0, 1),)`` is equation 5; ``((0,), (1,))`` is equation 6
            with dimension 1 prioritised.
        untied: the axes along which every position has weights of its own; along all others they are shared.
    """

    cells: tuple[Cell, ...]
    sizes: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]
    untied: tuple[int, ...] = ()


class Weights(NamedTuple):
    """The packed weights of one dimension's transform."""

    weight: Tensor
    """(*extents of the untied axes, num_gates * d_n, D)"""
    bias: Tensor | None
    """(*extents of the untied axes, num_gates * d_n), learned or the cell's constant"""

    def at(self, place: tuple[int, ...]) -> "Weights":
        """The weights at one position of the untied axes."""
        return Weights(self.weight[place], None if self.bias is None else self.bias[place])


def apply_block(block: Block, weights: Sequence[Weights], incoming: Sequence[HiddenMemory]) -> list[HiddenMemory]:
    """One block, equations 5 and 6: (h'_n, m'_n) = LSTM(H, m_n, W_n) with H = [h_1; ...; h_N].

    Every transform reads the same H but its own memory. A prioritised dimension is computed later and reads
    H' = [h_1; h'_2; ...], in which the dimensions of earlier stages are already updated.

    Args:
        weights: one a dimension, (num_gates * d_n, D).
        incoming: one a dimension, h (B, d_n) and m (B, memory size).

    Returns:
        What leaves the block along each dimension, shaped as what entered.
    """
    hidden = [h for h, _ in incoming]
    outgoing = list(incoming)
    for stage in block.stages:
        H = torch.cat(hidden, dim=-1)  # (B, D)
        for n in stage:
            z = F.linear(H, weights[n].weight, weights[n].bias)  # (B, num_gates * d_n)
            outgoing[n] = block.cells[n].pointwise(z, *incoming[n])
        for n in stage:
            hidden[n] = outgoing[n].h
    return outgoing


def scan(
    block: Block, weights: Sequence[Weights], sides: Sequence[HiddenMemory], extents: Sequence[int]
) -> list[HiddenMemory]:
    """Sweeps the grid from its origin to the opposite corner, one block after the other.

    Args:
        weights: one a dimension.
        sides: what enters the grid along each dimension: h (*extents without n, B, d_n), m likewise. In a grid of
            time and depth, ``sides[0]`` (L, B, d) is the initial state of the L layers and ``sides[1]`` (T, B, d) the
            projected inputs of the T steps.
        extents: number of blocks along each dimension.

    Returns:
        What leaves the grid along each dimension, shaped as what entered.
    """
    N = len(extents)
    edges: dict[tuple[int, tuple[int, ...]], HiddenMemory] = {}  # what enters block `place` along dimension n
    for n in range(N):
        for rest in product(*(range(extent) for axis, extent in enumerate(extents) if axis != n)):
            edges[n, (*rest[:n], 0, *rest[n:])] = HiddenMemory(sides[n].h[rest], sides[n].m[rest])

    for place in product(*map(range, extents)):  # lexicographic order visits every block after its predecessors
        copy = tuple(place[axis] for axis in block.untied)
        incoming = [edges.pop((n, place)) for n in range(N)]
        outgoing = apply_block(block, [w.at(copy) for w in weights], incoming)
        for n in range(N):
            edges[n, (*place[:n], place[n] + 1, *place[n + 1 :])] = outgoing[n]

    def leaving(n: int) -> HiddenMemory:
        rests = list(product(*(range(extent) for axis, extent in enumerate(extents) if axis != n)))
        ends = [edges[n, (*rest[:n], extents[n], *rest[n:])] for rest in rests]
        return HiddenMemory(
            torch.stack([end.h for end in ends]).view_as(sides[n].h),
            torch.stack([end.m for end in ends]).view_as(sides[n].m),
        )

    return [leaving(n) for n in range(N)]
