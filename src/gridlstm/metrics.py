"""Metrics as ratios of sums, exact for batches of any size and any number of ranks."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class RatioOfSums(Metric):
    """sum of numerators / sum of denominators: never a mean of means.

    ``task.mode`` of a run must agree with ``higher_is_better`` of its monitored metric, unless that is None.

    Args:
        unit: divisor of the ratio; ``math.log(2)`` converts nats to bits.
        shape: shape of the sums; () for one ratio.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, unit: float = 1.0, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.unit = unit
        self.shape = shape
        # Sums of 10^8 float32 terms lose digits; float64 keeps them.
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[..., Tensor], exclude_state: Sequence[str] = ()) -> "RatioOfSums":
        """Move to a device but keep the data type: a network in half precision must not count in half precision."""
        super()._apply(fn, exclude_state)
        self.total = self.total.double()
        self._defaults["total"] = torch.zeros(self.shape, dtype=torch.float64)
        return self

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Add a sum and the number of its terms, each of the metric's shape."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """Return the ratio; NaN if nothing was added."""
        return self.total / self.count / self.unit


class Loss(RatioOfSums):
    """Ratio of which lower values are better, such as a loss in nats."""

    higher_is_better = False


class Share(RatioOfSums):
    """Ratio of which higher values are better, such as an accuracy."""

    higher_is_better = True


class MeanOverClasses(Share):
    """Mean over classes of the sum of a class's numerators / the sum of its denominators.

    A class without denominators is left out.

    Args:
        classes: C; ``update`` takes vectors (C,).
    """

    def __init__(self, classes: int) -> None:
        super().__init__(shape=(classes,))

    def compute(self) -> Tensor:
        return super().compute()[self.count > 0].mean()


class Perplexity(Loss):
    """exp of the mean nats: the number of equally probable symbols with the same uncertainty."""

    def compute(self) -> Tensor:
        return super().compute().exp()


def bits() -> Loss:
    """Return a metric of bits per symbol that takes sums of nats."""
    return Loss(unit=math.log(2))
