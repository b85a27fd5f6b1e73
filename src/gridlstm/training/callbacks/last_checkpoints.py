"""Keep the checkpoints of the last validations, for a mean of their weights."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from gridlstm.errors import check_at_least_one


class LastCheckpoints(ModelCheckpoint):
    """Writes step-N.ckpt at every validation, N the optimizer steps so far, and removes all but the last ones.

    ``python -m gridlstm.average`` averages them.

    Args:
        dirpath: directory of the checkpoints.
        number: number of files to keep.

    Raises:
        UserError: ``number`` is below 1.
    """

    def __init__(self, dirpath: str, number: int = 5) -> None:
        check_at_least_one(number=number)
        super().__init__(
            dirpath, "step-{step}", save_top_k=-1, auto_insert_metric_name=False, enable_version_counter=False
        )
        self.number = number

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and self.dirpath is not None:
            for path in kept(Path(self.dirpath)):  # a run that resumes from an earlier checkpoint has not reached them
                if _step(path) > trainer.global_step:
                    path.unlink()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.is_global_zero and self.dirpath is not None:
            # Find files by name, because a resumed run does not know a file that was written after last.ckpt.
            for path in kept(Path(self.dirpath))[: -self.number]:
                path.unlink()


def kept(directory: Path) -> list[Path]:
    """Return the step-N.ckpt in a directory in ascending order of N."""
    return sorted((path for path in directory.glob("step-*.ckpt") if _number(path).isdecimal()), key=_step)


def _number(path: Path) -> str:
    return path.stem.removeprefix("step-")


def _step(path: Path) -> int:
    return int(_number(path))
