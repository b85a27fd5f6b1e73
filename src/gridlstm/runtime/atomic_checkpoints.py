"""Checkpoints that are whole or not there, wherever temporary files lie, and that know where they lie themselves."""

import os
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

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What Lightning loads, with the paths of checkpoints as they are now.

        It drops the best score where the directory has another name than when it was written.
        """
        content: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        for state in content.get("callbacks", {}).values():
            if isinstance(state, dict) and isinstance(was := state.get("dirpath"), str):
                now = os.path.realpath(Path(path).parent)  # as Lightning itself names directories
                state.update({key: _moved(value, was, now) for key, value in state.items()})
        return content


def _moved(value: Any, was: str, now: str) -> Any:
    """A path, or paths with their scores, below another directory."""
    if isinstance(value, dict):
        return {_moved(key, was, now): score for key, score in value.items()}
    if isinstance(value, str) and (value == was or value.startswith(f"{was}/")):
        return now + value[len(was) :]
    return value
