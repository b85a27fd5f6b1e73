"""Progress of training, for schedules of the learning rate and of noise."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer


class TrainingShare:
    """Share of the training that is done, by steps or by time, whichever is larger; 0 without a limit on either."""

    def __init__(self) -> None:
        self._time = 0.0

    def look_at_clock(self, trainer: L.Trainer) -> None:
        """Read the share of the time that has passed, the largest over all ranks. All ranks call this."""
        shares = []
        for timer in trainer.callbacks:  # type: ignore[attr-defined]  # set, but not annotated
            if isinstance(timer, Timer) and (remaining := timer.time_remaining()) is not None:
                elapsed = timer.time_elapsed()
                shares.append(elapsed / (elapsed + remaining))
        self._time = max(shares, default=0.0)
        if shares and trainer.world_size > 1:  # a single process need not wait for its device
            of_all = torch.tensor(self._time, device=trainer.strategy.root_device, dtype=torch.float64)
            self._time = float(trainer.strategy.reduce(of_all, reduce_op="max"))

    def at(self, trainer: L.Trainer) -> float:
        """Return the share at this step."""
        steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        return min(1.0, max(steps, self._time))
