"""Keep the best weights of a run, the latest among equally good ones."""

import logging
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from gridlstm.training.intact import damage

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the latest of equally good validations; Lightning's callback keeps the first one's.

    An accuracy can be constant for long: 0 while the loss already falls, and 1 after the task is learned. The test
    should then use the weights that were trained longest.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # A run that resumes from an earlier checkpoint has not reached the later one that may have replaced its best.
        best = Path(self.best_model_path)
        other = self.best_model_path != "" and (damage(best) is not None or _step(best) > trainer.global_step)
        if trainer.strategy.reduce_boolean_decision(other, all=False):
            log.warning("%s is lost or of a later step than this training, which chooses its best anew", best)
            self.best_k_models, self.kth_best_model_path = {}, ""
            self.best_model_path, self.best_model_score = "", None

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        if super().check_monitor_top_k(trainer, current):
            return True
        tie = current is not None and bool(current == self.best_k_models[self.kth_best_model_path])
        return trainer.strategy.reduce_boolean_decision(tie)


def _step(checkpoint: Path) -> int:
    """Return the optimizer steps before a checkpoint."""
    step: int = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"]
    return step


def best_checkpoint(trainer: L.Trainer) -> tuple[float, str] | None:
    """Return score and path of the best checkpoint so far; None if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
            return float(callback.best_model_score), callback.best_model_path
    return None
