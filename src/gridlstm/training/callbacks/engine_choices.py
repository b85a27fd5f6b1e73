"""Keep the engine's choices, which it measures on this machine, equal on all ranks and after a resume."""

from dataclasses import asdict
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gridlstm.engine import choices


class EngineChoices(Callback):
    """Gives all ranks the choices of rank zero, and stores them in checkpoints for a resumed run.

    Two choices differ by float32 rounding, which is enough to make two runs diverge.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            self.load_state_dict(trainer.strategy.broadcast(self.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        return asdict(choices.current())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        choices.force(choices.Choices(**state_dict))
