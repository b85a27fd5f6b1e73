"""Learning rate schedules that PyTorch does not have."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from gridlstm.errors import UserError


class Cosine(LRScheduler):
    """Warm-up to the optimizer's lr over the first part of the training, then decay, each along half a cosine.

    With p the completed share of the training, w = ``warmup`` and C(a, b, x) = b + (a - b) (1 + cos(pi x)) / 2:

        lr C(start, 1, p / w)                    while p < w
        lr C(1, end, (p - w) / (1 - w))          after that

    This is one cycle of Smith and Topin 2018 (arXiv 1708.07120) without its momentum schedule. PyTorch's ``OneCycleLR``
    and ``CosineAnnealingLR`` count steps. A run with a time limit does not know its number of steps in advance, so its
    schedule follows the clock, as in Geiping and Goldstein 2023 (arXiv 2212.14034).

    Args:
        warmup: share of the training, 0 for none.
        start: fraction of lr at the beginning of the warm-up.
        end: fraction of lr at the end.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(self, optimizer: Optimizer, warmup: float, start: float, end: float) -> None:
        if not 0 <= warmup < 1:
            raise UserError(f"scheduler.warmup must be at least 0 and below 1, got {warmup}.")
        for name, share in (("start", start), ("end", end)):
            if not 0 <= share <= 1:
                raise UserError(f"scheduler.{name} must be from 0 to 1, got {share}.")
        self.warmup = warmup
        self.start = start
        self.end = end
        self.progress = 0.0
        """p; the task sets it before every step."""
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [lr * self.factor(self.progress) for lr in self.base_lrs]

    def factor(self, progress: float) -> float:
        """Return the fraction of lr at a completed share of the training."""
        if progress < self.warmup:
            return _half_cosine(self.start, 1.0, progress / self.warmup)
        return _half_cosine(1.0, self.end, min(1.0, (progress - self.warmup) / (1 - self.warmup)))


def _half_cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


class EpochDecay(LambdaLR):
    """lr gamma^max(0, e - first_epoch + 1) after e whole epochs: char-rnn's ``learning_rate_decay`` of 0.97 after 10.

    Args:
        gamma: the factor.
        first_epoch: the epoch, counted from 1, at whose end the learning rate is first multiplied.
        steps_per_epoch: optimizer steps, may be fractional. In a configuration, null stands for the number of steps
            that reads the run's training split once.

    Raises:
        UserError: if a value is out of range, or the data has no epochs.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, first_epoch: int, steps_per_epoch: float | None) -> None:
        if not 0 < gamma <= 1:
            raise UserError(f"scheduler.gamma must be above 0 and at most 1, got {gamma}.")
        if first_epoch < 1:
            raise UserError(f"scheduler.first_epoch must be at least 1, got {first_epoch}.")
        if steps_per_epoch is None:
            raise UserError("this task's data has no epochs. Set their length, such as scheduler.steps_per_epoch=1000.")
        if not 0 < steps_per_epoch < math.inf:
            raise UserError(f"scheduler.steps_per_epoch must be above 0, got {steps_per_epoch}.")
        super().__init__(optimizer, lambda step: gamma ** max(0, math.floor(step / steps_per_epoch) - first_epoch + 1))
