"""Learning rates that PyTorch's schedulers do not describe."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gridlstm.errors import UserError


class EpochDecay(LambdaLR):
    """lr gamma^max(0, e - first_epoch + 1) after e whole epochs: char-rnn's ``learning_rate_decay`` of 0.97 after 10.

    Args:
        gamma: the factor.
        first_epoch: the epoch at whose end the rate is multiplied for the first time, counted from 1.
        steps_per_epoch: optimiser steps; the run fills in its data's where it is None.

    Raises:
        UserError: a value out of range, or data without epochs.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, first_epoch: int, steps_per_epoch: int | None) -> None:
        if not 0 < gamma <= 1:
            raise UserError(f"scheduler.gamma must be above 0 and at most 1, got {gamma}.")
        if first_epoch < 1:
            raise UserError(f"scheduler.first_epoch must be at least 1, got {first_epoch}.")
        if steps_per_epoch is None:
            raise UserError("this task's data has no epochs: say what one is, such as scheduler.steps_per_epoch=1000.")
        if steps_per_epoch < 1:
            raise UserError(f"scheduler.steps_per_epoch must be at least 1, got {steps_per_epoch}.")
        super().__init__(optimizer, lambda step: gamma ** max(0, step // steps_per_epoch - first_epoch + 1))
