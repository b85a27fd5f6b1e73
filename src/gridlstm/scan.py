"""The reference sweep: plain loops over the cells of an N-dimensional grid.

This is the specification. It is short rather than fast; every faster sweep equals it in value and gradient.

Shape legend: N dimensions, B batch rows, d_n size of dimension n, D = d_1 + ... + d_N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import Cell, HiddenMemory


@dataclass(frozen=True)
class Block:
    """The structure of one block, the same everywhere in the grid.

    Args:
        cells: one per dimension.
        sizes: d_n, one per dimension.
        stages: the order in which a block computes its dimensions. Dimensions of one stage see the same H. Dimensions
            of a later stage see the h' of all earlier ones. ``((0, 1),)`` is equation 5; ``((0,), (1,))`` is equation
            6 with dimension 1 prioritized.
        untied: the axes along which every position has its own weights; along all others weights are shared.
        same: (n, other) for each dimension n with the same cell and weights as ``other`` of the same stage. Both then
            have the same pre-activations, which a fast sweep computes once. The gradient of the weights goes to the
            weights given for ``other``.
    """

    cells: tuple[Cell, ...]
    sizes: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]
    untied: tuple[int, ...] = ()
    same: tuple[tuple[int, int], ...] = ()


def columns_of(block: Block) -> list[slice]:
    """Return the columns of H = [h_1; ...; h_N] that hold each h_n."""
    ends = list(accumulate(block.sizes))
    return [slice(end - size, end) for end, size in zip(ends, block.sizes, strict=True)]


class Weights(NamedTuple):
    """The packed weights of one dimension's transform."""

    weight: Tensor
    """(*extents of the untied axes, num_gates * d_n, D)"""
    bias: Tensor | None
    """(*extents of the untied axes, num_gates * d_n), learned or the cell's constant"""
    vectors: tuple[Tensor, ...] = ()
    """The cell's other parameters, each (*extents of the untied axes, length)"""

    def copies(self, axes: int) -> list["Weights"]:
        """Return the weights of every position of the untied axes, in lexicographic order."""
        # Unbound once: indexing inside the sweep would fill a whole gradient with zeros for every block.
        weights, *vectors = (
            x.reshape(prod(x.shape[:axes]), *x.shape[axes:]).unbind() for x in (self.weight, *self.vectors)
        )
        biases = [None] * len(weights) if self.bias is None else self.bias.reshape(-1, self.bias.shape[-1]).unbind()
        return [
            Weights(weight, bias, tuple(vector[k] for vector in vectors))
            for k, (weight, bias) in enumerate(zip(weights, biases, strict=True))
        ]


class Masks(NamedTuple):
    """Masks on one dimension, drawn before the sweep.

    Each is (*extents, B, size) or broadcasts to it. ``keep_h`` and ``keep_m`` keep previous values: h' becomes
    keep_h . h + (1 - keep_h) . h', likewise m'. Booleans select (padding in a batch of unequal lengths, zoneout),
    floats mix (zoneout's expectation). ``drop``, times the number ``scale`` if there is one, multiplies h only where
    matrix products read it. As booleans, False for what is dropped, with a scale, dropout takes a quarter of the memory
    of floats.
    """

    keep_h: Tensor | None = None
    keep_m: Tensor | None = None
    drop: Tensor | None = None
    scale: Tensor | None = None
    """()"""

    @property
    def factor(self) -> Tensor | None:
        """The product of ``drop`` and ``scale``, which multiplies h."""
        return self.drop if self.drop is None or self.scale is None else self.drop * self.scale

    def in_type(self, dtype: torch.dtype) -> "Masks":
        """Return the masks with floats converted to this type."""
        return Masks(*(x.to(dtype) if x is not None and x.is_floating_point() else x for x in self))


def mix(keep: Tensor | None, old: Tensor, new: Tensor) -> Tensor:
    """Return keep . old + (1 - keep) . new; ``new`` if ``keep`` is None."""
    if keep is None:
        return new
    if keep.dtype == torch.bool:
        return torch.where(keep, old, new)
    return keep * old + (1 - keep) * new


def held(keep: Tensor, old: Tensor) -> Tensor:
    """Return the share of ``old`` in ``mix``; applied to a gradient, the part that bypasses the step."""
    return torch.where(keep, old, 0) if keep.dtype == torch.bool else keep * old


def apply_block(
    block: Block,
    weights: Sequence[Weights],
    incoming: Sequence[HiddenMemory],
    masks: Sequence[Masks] | None = None,
) -> list[HiddenMemory]:
    """Compute one block, equations 5 and 6: (h'_n, m'_n) = LSTM(H, m_n, W_n) with H = [h_1; ...; h_N].

    Every transform reads the same H but its own memory. A prioritized dimension is computed later and reads
    H' = [h_1; h'_2; ...], in which the dimensions of earlier stages are already updated.

    Args:
        weights: one per dimension, (num_gates * d_n, D).
        incoming: one per dimension, h (B, d_n) and m (B, memory size).
        masks: one per dimension, for this block: (B, d_n) each.

    Returns:
        The outgoing vectors of each dimension, shaped like the incoming ones.
    """
    masks = masks or [Masks()] * len(incoming)
    hidden = [h for h, _ in incoming]
    outgoing = list(incoming)
    for stage in block.stages:
        # (B, D)
        H = torch.cat(
            [h if mask.factor is None else h * mask.factor for h, mask in zip(hidden, masks, strict=True)], dim=-1
        )
        for n in stage:
            # Autocast changes only the type of the product.
            z = F.linear(H, weights[n].weight, weights[n].bias).to(H.dtype)  # (B, num_gates * d_n)
            h, m = block.cells[n].pointwise(z, *incoming[n], *weights[n].vectors)
            outgoing[n] = HiddenMemory(mix(masks[n].keep_h, incoming[n].h, h), mix(masks[n].keep_m, incoming[n].m, m))
        for n in stage:
            hidden[n] = outgoing[n].h
    return outgoing


def expand_masks(block: Block, masks: Sequence[Masks], extents: Sequence[int], B: int) -> list[Masks]:
    """Expand every mask to its full size, (*extents, B, size)."""

    def expand(mask: Tensor | None, size: int) -> Tensor | None:
        return None if mask is None else mask.expand(*extents, B, size)

    return [
        Masks(expand(mask.keep_h, size), expand(mask.keep_m, cell.memory_size(size)), expand(mask.factor, size))
        for mask, cell, size in zip(masks, block.cells, block.sizes, strict=True)
    ]


def scan(
    block: Block,
    weights: Sequence[Weights],
    sides: Sequence[HiddenMemory],
    extents: Sequence[int],
    masks: Sequence[Masks] | None = None,
) -> list[HiddenMemory]:
    """Sweep the grid from its origin to the opposite corner, one block after the other.

    Args:
        weights: one per dimension.
        sides: inputs of the grid along each dimension: h (*extents without n, B, d_n), m likewise. In a grid of time
            and depth, ``sides[0]`` (L, B, d) is the initial state of the L layers and ``sides[1]`` (T, B, d) the
            projected inputs of the T steps.
        extents: number of blocks along each dimension.
        masks: one per dimension; None for none.

    Returns:
        The outputs of the grid along each dimension, shaped like the sides.
    """
    N = len(extents)
    edges: dict[tuple[int, tuple[int, ...]], HiddenMemory] = {}  # input of block `place` along dimension n
    for n in range(N):
        for rest in product(*(range(extent) for axis, extent in enumerate(extents) if axis != n)):
            edges[n, (*rest[:n], 0, *rest[n:])] = HiddenMemory(sides[n].h[rest], sides[n].m[rest])
    places = list(product(*map(range, extents)))
    copies = list(product(*(range(extents[axis]) for axis in block.untied)))
    packed = [w.copies(len(block.untied)) for w in weights]
    copy_weights = dict(zip(copies, zip(*packed, strict=True), strict=True))
    expanded = None if masks is None else expand_masks(block, masks, extents, sides[0].h.shape[-2])

    for place in places:  # lexicographic order visits every block after its predecessors
        copy = tuple(place[axis] for axis in block.untied)
        incoming = [edges.pop((n, place)) for n in range(N)]
        here = expanded and [Masks(*(None if x is None else x[place] for x in mask)) for mask in expanded]
        outgoing = apply_block(block, copy_weights[copy], incoming, here)
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
