"""Average the weights over training: Lightning's callback with a warm-up, and with the average tested."""

from collections import OrderedDict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging as LightningWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gridlstm.errors import UserError


class WeightAveraging(LightningWeightAveraging):
    """Exponential moving average of the weights, which is validated, stored and tested.

    The first update copies the weights w. After n updates, w' = d w' + (1 - d) w with
    d = min(decay, (n + 1) / (n + 10)), so the average follows the first steps closely. With ``decay`` alone, a third of
    it would still be the random initial weights after 1 / (1 - decay) steps.

    The ``state_dict`` of a checkpoint is the average. Lightning's callback replaces it by the latest weights whenever
    it loads a checkpoint, even for a test after training. This callback replaces it only for training.

    Args:
        decay: from 0 (no average) to below 1.
        update_every_n_steps: optimizer steps between updates.

    Raises:
        UserError: from ``setup``, if ``decay`` or ``update_every_n_steps`` is out of range, or if the weights have half
            precision, which rounds 0.999 w' + 0.001 w to w'.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        super().__init__(multi_avg_fn=self._average, use_buffers=False)  # buffers are constants, and some are integers
        self.decay = decay
        self.update_every_n_steps = update_every_n_steps

    def _average(self, averages: Any, weights: Any, updates: Tensor | int) -> None:
        n = int(updates)
        get_ema_multi_avg_fn(min(self.decay, (n + 1) / (n + 10)))(averages, weights, n)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx % self.update_every_n_steps == 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.update_every_n_steps < 1:
            raise UserError(
                f"callbacks.weight_averaging.update_every_n_steps must be at least 1, got {self.update_every_n_steps}."
            )
        if not 0 <= self.decay < 1:
            raise UserError(f"callbacks.weight_averaging.decay must be at least 0 and below 1, got {self.decay}.")
        for weight in pl_module.parameters():
            if stage == "fit" and weight.dtype in (torch.float16, torch.bfloat16):
                raise UserError(
                    f"callbacks.weight_averaging needs weights of float32 or float64, got "
                    f"{str(weight.dtype).removeprefix('torch.')}: rounding would soon stop the average from changing. "
                    f"Use trainer.precision=bf16-mixed or 32-true."
                )
        super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        trained = checkpoint["state_dict"]
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        # Lightning's average is a plain dictionary, which has no metadata of modules.
        checkpoint["state_dict"] = OrderedDict(checkpoint["state_dict"])
        checkpoint["state_dict"]._metadata = trained._metadata

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
