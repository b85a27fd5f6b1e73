"""Checkpoints that are whole or not there, wherever temporary files lie."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gridlstm.atomic import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place.

    Lightning itself moves a file from the directory of temporary files, which on another file system is a copy onto
    the old one: a run that is killed meanwhile would have lost both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        destination = Path(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as file:
            torch.save(checkpoint, file)
