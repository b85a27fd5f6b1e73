"""Noise on one dimension of a grid, as masks that are drawn before the sweep.

With the same seed, the recomputing sweep, every schedule and every rank then get the same numbers.

Shape legend: B batch rows, d size of the dimension; masks are (*extents, B, d) or broadcast to it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gridlstm.errors import UserError, check_probability
from gridlstm.scan import Masks


@dataclass(frozen=True)
class Draw:
    """Sizes and settings for drawing a mask."""

    n: int
    """Index of the dimension, and of its axis."""
    extents: tuple[int, ...]
    B: int
    size: int
    memory_size: int
    like: Tensor
    """A tensor with the device and data type of the mask."""
    training: bool
    progress: float
    """Completed share of the training, 0 to 1."""

    def bernoulli(self, p: float, *shape: int) -> Tensor:
        """Return booleans that are True with probability p."""
        # An exported program cannot hold the range below, and torch.func.vmap fills no tensor in place at random.
        if torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
            return torch.rand(shape, device=self.like.device) < p
        # Two numbers of 32 bits from each of 64: on a CPU, half the time of one random float for each element.
        pairs = torch.empty(-(-math.prod(shape) // 2), dtype=torch.int64, device=self.like.device)
        numbers = pairs.random_(-(2**63), None).view(torch.int32)[: math.prod(shape)].view(shape)
        return numbers < min(round((p - 0.5) * 2**32), 2**31 - 1)


class Regularizer(ABC):
    """Source of the masks of one dimension for one call of the grid."""

    @abstractmethod
    def masks(self, draw: Draw) -> Masks:
        """Return the masks; ``Masks()`` for none."""


@dataclass(frozen=True)
class Dropout(Regularizer):
    """Dropout of h where matrix products read it, with a new mask in every block (Zaremba et al. 2014 on depth).

    Kept elements are divided by 1 - p, so evaluation needs no change.
    """

    p: float

    def __post_init__(self) -> None:
        check_probability("dropout p", self.p)

    def shape(self, draw: Draw) -> tuple[int, ...]:
        """Return the shape of the mask."""
        return (*draw.extents, draw.B, draw.size)

    def masks(self, draw: Draw) -> Masks:
        if not draw.training or self.p == 0:
            return Masks()
        return Masks(drop=draw.bernoulli(1 - self.p, *self.shape(draw)), scale=draw.like.new_ones(()) / (1 - self.p))


@dataclass(frozen=True)
class VariationalDropout(Dropout):
    """Dropout with one mask for all steps along the dimension (Gal and Ghahramani 2016).

    Along time, each layer has its own mask, the same at every step.
    """

    def shape(self, draw: Draw) -> tuple[int, ...]:
        return (*(1 if n == draw.n else extent for n, extent in enumerate(draw.extents)), draw.B, draw.size)


@dataclass(frozen=True)
class FrameDropout(Regularizer):
    """Dropout of whole vectors with the schedule of Cheng, Povey et al. 2017: one random number per step decides.

    The vector h that the matrix products read is zero with probability p and unchanged otherwise, without rescaling.
    Kaldi's per-frame dropout differs: it zeroes the gates i, f and o of a frame, each by its own random number.

    Args:
        schedule: (completed share of training, p) pairs with rising shares; p is linear in between.
    """

    schedule: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.2, 0.0), (0.5, 0.3), (1.0, 0.0))

    def __post_init__(self) -> None:
        are_pairs = bool(self.schedule) and all(
            isinstance(point, Sequence) and len(point) == 2 and isinstance(point[0], int | float)
            for point in self.schedule
        )
        shares = [0.0, *(point[0] for point in self.schedule), 1.0] if are_pairs else []
        if not are_pairs or not all(before <= share for before, share in pairwise(shares)):  # also if one is NaN
            raise UserError(f"schedule must hold (share, p) pairs with rising shares from 0 to 1, got {self.schedule}.")
        for _, p in self.schedule:
            check_probability("schedule p", p)

    def probability(self, progress: float) -> float:
        """Return p at this share of the training."""
        before = [point for point in self.schedule if point[0] <= progress]
        after = [point for point in self.schedule if point[0] > progress]
        if not before or not after:
            return (before or after)[-1 if before else 0][1]
        (a, p), (b, q) = before[-1], after[0]
        return p + (q - p) * (progress - a) / (b - a)

    def masks(self, draw: Draw) -> Masks:
        p = self.probability(draw.progress)
        if not draw.training or p == 0:
            return Masks()
        return Masks(drop=draw.bernoulli(1 - p, *draw.extents, draw.B, 1))


@dataclass(frozen=True)
class Zoneout(Regularizer):
    """Zoneout of random elements of h and m, which keep their previous values (Krueger et al. 2017).

    Evaluation uses expectations.

    Args:
        h: probability for hidden elements.
        m: probability for memory elements.
    """

    h: float = 0.0
    m: float = 0.0

    def __post_init__(self) -> None:
        check_probability("zoneout h", self.h)
        check_probability("zoneout m", self.m)

    def masks(self, draw: Draw) -> Masks:
        def keep(p: float, size: int) -> Tensor | None:
            if p == 0:
                return None
            if not draw.training:
                return draw.like.new_full((1,), p)
            return draw.bernoulli(p, *draw.extents, draw.B, size)

        return Masks(keep_h=keep(self.h, draw.size), keep_m=keep(self.m, draw.memory_size))


def combine(masks: Sequence[Masks]) -> Masks:
    """Combine masks: factors multiply, and an element that any mask keeps is kept."""

    def merge(a: Tensor | None, b: Tensor | None, both: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        if a is None or b is None:
            return b if a is None else a
        return both(a, b)

    def kept(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == b.dtype == torch.bool:
            return a | b
        if b.dtype == torch.bool:
            a, b = b, a
        return torch.where(a, 1, b) if a.dtype == torch.bool else 1 - (1 - a) * (1 - b)

    total = Masks()
    for mask in masks:
        total = Masks(
            merge(total.keep_h, mask.keep_h, kept),
            merge(total.keep_m, mask.keep_m, kept),
            merge(total.drop, mask.drop, torch.mul),  # of booleans: booleans
            merge(total.scale, mask.scale, torch.mul),
        )
    return total
