"""Checkpoint files that are complete or absent, and that can be moved to another directory.

The previous last checkpoint is also kept, in case the file of the newest is damaged on disk.
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
    """Writes a new file beside the old checkpoint, then replaces it.

    Lightning moves a file from the directory of temporary files. If that directory is on another file system, the move
    copies over the old checkpoint, and a run killed during the copy loses both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        destination = Path(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as file:
            torch.save(checkpoint, file)
            # A file of an earlier process may be damaged, and must not replace an intact previous checkpoint.
            if destination.name == LAST and (destination in self._written or damage(destination) is None):
                _keep(destination)
        self._written.add(destination)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what Lightning loads, with checkpoint paths changed to the present directory.

        Lightning drops the best score if the directory has been renamed since the checkpoint was written.

        Raises:
            UserError: the checkpoint is damaged.
        """
        check_intact(Path(path))
        content: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        with_text_state(content)
        for state in content.get("callbacks", {}).values():
            if isinstance(state, dict) and isinstance(was := state.get("dirpath"), str):
                now = os.path.realpath(Path(path).parent)  # Lightning also stores real paths
                state.update({key: _moved(value, was, now) for key, value in state.items()})
        return content


def _keep(last: Path) -> None:
    """Rename the last checkpoint to the previous one; if links work, it has both names for a moment."""
    link = last.with_name(f"{PREVIOUS}.part")
    try:
        link.unlink(missing_ok=True)
        os.link(last, link)
    except OSError:  # a file system without links: rename directly
        link = last
    os.replace(link, last.with_name(PREVIOUS))


def _moved(value: Any, was: str, now: str) -> Any:
    """Return a path, or paths with their scores, moved to another directory."""
    if isinstance(value, dict):
        return {_moved(key, was, now): score for key, score in value.items()}
    if isinstance(value, str) and (value == was or value.startswith(f"{was}/")):
        return now + value[len(was) :]
    return value
