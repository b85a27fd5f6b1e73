"""The best weights of a run, and of equally good ones the latest."""

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Lightning's callback, which of equally good validations keeps the first, with the latest kept instead.

    An accuracy is the same for long: none at all while a network's loss already falls, and all of it for as long as one
    trains on after it has learned its task. Of such weights a test is to judge those that were trained longest.
    """

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        if super().check_monitor_top_k(trainer, current):
            return True
        tie = current is not None and bool(current == self.best_k_models[self.kth_best_model_path])
        return trainer.strategy.reduce_boolean_decision(tie)


def best_checkpoint(trainer: L.Trainer) -> tuple[float, str] | None:
    """Return score and path of the best checkpoint so far; None before the first, or where none are kept."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
            return float(callback.best_model_score), callback.best_model_path
    return None
