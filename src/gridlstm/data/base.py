"""What every data module yields and publishes.

Shape legend: B batch rows, T time steps, S time steps of a source.
"""

from typing import Any, NamedTuple

import lightning as L
from torch import Tensor

from gridlstm.data.spec import DataSpec
from gridlstm.errors import UserError


class Batch(NamedTuple):
    """One step's worth of sequences of symbols. Tasks on other data take batches of their own."""

    inputs: Tensor
    """(B, T) int64 symbols, which stand for one-hot vectors, or (B, T, input_size) floats; for a single
    vector T = 1."""
    targets: Tensor
    """(B, T) int64 classes."""
    loss_mask: Tensor
    """(B, T) bool: the steps that the loss covers (False on padding that is no part of the sequence)."""
    answer_mask: Tensor
    """(B, T) bool: the steps that the metrics judge, a subset of ``loss_mask``."""
    reset: Tensor
    """(B,) bool: the recurrent state of this row starts afresh before this batch."""


class ImageBatch(NamedTuple):
    """Images with one class each."""

    images: Tensor
    """(B, channels, height, width) floats."""
    targets: Tensor
    """(B,) int64 classes."""


class PairBatch(NamedTuple):
    """Pairs of sequences of symbols: one is read, the other is predicted symbol by symbol."""

    source: Tensor
    """(B, S) int64 symbols."""
    source_mask: Tensor
    """(B, S) bool: False on padding."""
    inputs: Tensor
    """(B, T) int64 symbols of the target, each one step late: what is known when ``targets`` is predicted."""
    targets: Tensor
    """(B, T) int64 symbols."""
    loss_mask: Tensor
    """(B, T) bool: the steps that the loss covers (False on padding)."""


def owned_rows(rows: int, rank: int, world_size: int, option: str = "task.data.batch_size") -> range:
    """The rows of the global batch, or of what ``option`` counts, that one rank computes.

    The partition is contiguous and fixed, so a rank keeps its streams for the whole run; sizes differ by at most one.

    Raises:
        UserError: fewer rows than ranks.
    """
    if rows < world_size:
        raise UserError(
            f"{option}={rows} is global and cannot be divided over {world_size} processes: every process needs at "
            f"least one row. Raise {option} or lower trainer.devices."
        )
    return range(rank * rows // world_size, (rank + 1) * rows // world_size)


class SequenceData(L.LightningDataModule):
    """Base of all data modules: the global batch, its partition over ranks, and the position in the training stream.

    Training batches are an endless sequence, a pure function of (seed, batch number), so that a resumed run goes on
    with the batch after the last one it trained on, and any number of ranks sees the same global batches.

    Subclasses implement ``spec`` and the three ``*_dataloader`` methods, whose loaders yield what this rank owns.

    Args:
        batch_size: rows of one global batch, over all ranks.
        seed: of the training stream, 0 or more; evaluation data does not depend on it.

    Raises:
        UserError: no row, or a seed below 0.
    """

    curriculum_samples: int = 0
    """Training samples after which a curriculum has all lengths open; 0 where there is none."""

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"task.data.batch_size must be at least 1, got {batch_size}.")
        if seed < 0:
            raise UserError(f"seed must be 0 or more, got {seed}.")
        self.batch_size = batch_size
        self.seed = seed
        self.batches_seen = 0
        """Global training batches taken so far; part of every checkpoint."""

    @property
    def spec(self) -> DataSpec:
        raise NotImplementedError(f"{type(self).__name__} must define spec")

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches in which the training data is read once, rounded; None where it has no end."""
        return None

    @property
    def rows(self) -> range:
        """The rows of the global batch that this process owns."""
        if self.trainer is None:
            return range(self.batch_size)
        return owned_rows(self.batch_size, self.trainer.global_rank, self.trainer.world_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # Lightning calls this once per batch, just before training_step: a prefetched batch is not counted.
        if self.trainer is not None and self.trainer.training:
            self.batches_seen += 1
        return batch

    def check_goes_on(self, state_dict: dict[str, Any]) -> None:
        """Raises UserError where this is not the data that a checkpoint was trained on."""

    def state_dict(self) -> dict[str, Any]:
        return {"batches_seen": self.batches_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches_seen = int(state_dict["batches_seen"])
