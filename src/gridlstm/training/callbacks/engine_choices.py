"""Keeps what the engine chose by measuring this machine: the same on all ranks, and the same after a resume."""

from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gridlstm.engine import choices


class EngineChoices(Callback):
    """All ranks compute with rank zero's choices; a checkpoint holds them, and a resumed run takes them up again.

    Two choices differ by float32 rounding, which is enough for two runs to part.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            self.load_state_dict(trainer.strategy.broadcast(self.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        return asdict(choices.current())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        choices.force(choices.Choices(**state_dict))
