"""Metrics as ratios of sums, exact over batches of any size and over any number of ranks."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class RatioOfSums(Metric):
    """sum of numerators / sum of denominators: never a mean of means.

    Args:
        unit: what the ratio is divided by; ``math.log(2)`` turns nats into bits.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, unit: float = 1.0) -> None:
        super().__init__()
        self.unit = unit
        # Sums of 10^8 float32 terms lose digits; float64 keeps them.
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[..., Tensor], exclude_state: Sequence[str] = ()) -> "RatioOfSums":
        """Moves to a device, never to another type: a network in half precision does not count in it."""
        super()._apply(fn, exclude_state)
        self.total = self.total.double()
        self._defaults["total"] = torch.zeros((), dtype=torch.float64)
        return self

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Adds a sum and the number of its terms."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """The ratio; NaN over nothing."""
        return self.total / self.count / self.unit


class Perplexity(RatioOfSums):
    """exp of the mean nats: among how many equally probable symbols a model is undecided."""

    def compute(self) -> Tensor:
        return super().compute().exp()


def bits() -> RatioOfSums:
    """Return a metric of bits per symbol, from sums of nats."""
    return RatioOfSums(unit=math.log(2))
