"""Keep the best weights of a run, the latest among equally good ones."""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the latest of equally good validations; Lightning's callback keeps the first one's.

    An accuracy can be constant for long: 0 while the loss already falls, and 1 after the task is learned. The test
    should then use the weights that were trained longest.
    """

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        if super().check_monitor_top_k(trainer, current):
            return True
        tie = current is not None and bool(current == self.best_k_models[self.kth_best_model_path])
        return trainer.strategy.reduce_boolean_decision(tie)


def best_checkpoint(trainer: L.Trainer) -> tuple[float, str] | None:
    """Return score and path of the best checkpoint so far; None if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
            return float(callback.best_model_score), callback.best_model_path
    return None
