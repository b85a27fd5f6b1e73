"""Checkpoints that are whole or not there, wherever temporary files lie, and that know where they lie themselves.

Of the last one the one before is kept too, for what may happen to a file on its disk.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from gridlstm.data.old_runs import with_text_state
from gridlstm.files import replacing
from gridlstm.training.intact import LAST, PREVIOUS, check_intact, damage


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place.

    Lightning itself moves a file from the directory of temporary files, which on another file system is a copy onto
    the old one: a run that is killed meanwhile would have lost both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        destination = Path(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as file:
            torch.save(checkpoint, file)
            # One that an earlier process wrote may have come to harm, and is not to take the place of an intact one.
            if destination.name == LAST and (destination in self._written or damage(destination) is None):
                _keep(destination)
        self._written.add(destination)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what Lightning loads, with the paths of checkpoints as they are now.

        It drops the best score where the directory has another name than when it was written.

        Raises:
            UserError: the checkpoint is damaged.
        """
        check_intact(Path(path))
        content: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        with_text_state(content)
        for state in content.get("callbacks", {}).values():
            if isinstance(state, dict) and isinstance(was := state.get("dirpath"), str):
                now = os.path.realpath(Path(path).parent)  # as Lightning itself names directories
                state.update({key: _moved(value, was, now) for key, value in state.items()})
        return content


def _keep(last: Path) -> None:
    """Give the last checkpoint the name of the one before; for a moment it has both."""
    link = last.with_name(f"{PREVIOUS}.part")
    try:
        link.unlink(missing_ok=True)
        os.link(last, link)
    except OSError:  # a file system without links: for a moment it has the second name alone
        link = last
    os.replace(link, last.with_name(PREVIOUS))


def _moved(value: Any, was: str, now: str) -> Any:
    """A path, or paths with their scores, below another directory."""
    if isinstance(value, dict):
        return {_moved(key, was, now): score for key, score in value.items()}
    if isinstance(value, str) and (value == was or value.startswith(f"{was}/")):
        return now + value[len(was) :]
    return value
