"""Batches and the base class of all data modules.

Shape legend: B batch rows, T time steps, S time steps of a source.
"""

from typing import Any, Literal, NamedTuple

import lightning as L
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gridlstm.data.spec import DataSpec
from gridlstm.data.vocabulary import Vocabulary
from gridlstm.errors import UserError

Split = Literal["train", "val", "test"]


class Batch(NamedTuple):
    """Batch of symbol sequences for one training step. Tasks on other data define their own batches."""

    inputs: Tensor
    """(B, T) int64 symbols, which stand for one-hot vectors, or (B, T, input_size) floats. T = 1 for a single
    vector."""
    targets: Tensor
    """(B, T) int64 classes."""
    loss_mask: Tensor
    """(B, T) bool: steps included in the loss (False on padding)."""
    answer_mask: Tensor
    """(B, T) bool: steps included in the metrics, a subset of ``loss_mask``."""
    reset: Tensor
    """(B,) bool: True if the recurrent state of the row is reset before this batch."""


class ImageBatch(NamedTuple):
    """Batch of images with one class each."""

    images: Tensor
    """(B, channels, height, width) floats."""
    targets: Tensor
    """(B,) int64 classes."""


class PixelBatch(NamedTuple):
    """Batch of images with a class at every pixel."""

    images: Tensor
    """(B, channels, height, width) floats."""
    targets: Tensor
    """(B, height, width) int64 classes."""


class VideoBatch(NamedTuple):
    """Batch of moving images, each frame with the one after it."""

    frames: Tensor
    """(B, T, channels, height, width) floats."""
    targets: Tensor
    """(B, T, channels, height, width) bool: for each frame, the lit pixels of the next one."""


class PairBatch(NamedTuple):
    """Batch of pairs of symbol sequences: the source is read, the target is predicted symbol by symbol."""

    source: Tensor
    """(B, S) int64 symbols."""
    source_mask: Tensor
    """(B, S) bool: False on padding."""
    inputs: Tensor
    """(B, T) int64 symbols of the target, delayed by one step: at each step, the symbol before the one to predict."""
    targets: Tensor
    """(B, T) int64 symbols."""
    loss_mask: Tensor
    """(B, T) bool: steps included in the loss (False on padding)."""


def owned_rows(rows: int, rank: int, world_size: int, name: str = "batch_size") -> range:
    """Return the rows of the global batch, or of the quantity called ``name``, that one rank computes.

    The partition is contiguous and fixed, so a rank keeps its streams for the whole run. Sizes differ by at most one.

    Raises:
        UserError: there are fewer rows than ranks.
    """
    if rows < world_size:
        raise UserError(
            f"{name}={rows} is global and cannot be divided over {world_size} processes: each needs at least one row. "
            f"Raise it, or use fewer processes."
        )
    return _share(range(rows), rank, world_size)


def _share(rows: range, rank: int, world_size: int) -> range:
    """Return one rank's contiguous part; sizes differ by at most one."""
    return rows[rank * len(rows) // world_size : (rank + 1) * len(rows) // world_size]


def owned_samples(samples: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """Return the samples of each evaluation batch that one rank computes; a short last batch may leave it none.

    The n-th batches of all ranks together are the n-th batch of one process, which limits of batches need.
    """
    batches = (range(first, min(first + batch_size, samples)) for first in range(0, samples, batch_size))
    return [_share(batch, rank, world_size) for batch in batches]


class SequenceData(L.LightningDataModule):
    """Base of all data modules: the global batch, its partition over ranks, and the position in the training stream.

    Training batches are an endless sequence and a pure function of (seed, batch number). A resumed run therefore
    continues with the next batch, and any number of ranks sees the same global batches.

    Subclasses implement ``spec`` and the three ``*_dataloader`` methods, whose loaders yield the rows of this rank. The
    other methods are for commands; their defaults suit data that is not text.

    Args:
        batch_size: rows of one global batch, over all ranks.
        seed: seed of the training stream, 0 or more; evaluation data does not depend on it.

    Raises:
        ValueError: ``batch_size`` is below 1, or ``seed`` is below 0.
    """

    curriculum_samples: int = 0
    """Training samples after which a curriculum includes all lengths; 0 without a curriculum."""

    counts_batches: bool = True
    """True if evaluation batches are counted before they are read, so that a share of them can be selected."""

    changed: bool = False
    """True once the state of a checkpoint that was trained on other data has been loaded."""

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        self.batch_size = batch_size
        self.seed = seed
        self.batches_seen = 0
        """Number of global training batches taken so far; stored in every checkpoint."""

    @property
    def spec(self) -> DataSpec:
        raise NotImplementedError(f"{type(self).__name__} must define spec")

    @property
    def expected_spec(self) -> DataSpec | None:
        """Sizes known before anything is read; None if none are."""
        return None

    @property
    def called(self) -> str:
        """Name of the data in messages."""
        return type(self).__name__

    @property
    def foreign_files(self) -> tuple[str, ...]:
        """Names of files that differ from those of the published data set."""
        return ()

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Symbols by their ids; None if the data is not text."""
        return None

    def text(self, split: Split) -> NDArray[np.integer[Any]]:
        """Return the symbol ids of a split in text order.

        Raises:
            ValueError: the data is not text.
        """
        raise ValueError(f"{self.called} is not text")

    def test_on_all(self) -> None:
        """Use all of the data as the test split.

        Raises:
            ValueError: the samples are generated without end.
        """
        raise ValueError(f"the samples of {self.called} have no end")

    def check(self) -> None:
        """Raise UserError if the data is certainly not available, without reading or downloading it."""

    def check_processes(self, number: int) -> None:
        """Raise UserError if this number of processes cannot share the batches."""
        owned_rows(self.batch_size, 0, number)

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches in one epoch of the training data, rounded; None if it has no end."""
        return None

    @property
    def rows(self) -> range:
        """Rows of the global batch that this process owns."""
        if self.trainer is None:
            return range(self.batch_size)
        return owned_rows(self.batch_size, self.trainer.global_rank, self.trainer.world_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # Lightning calls this once per batch, just before training_step, so a prefetched batch is not counted.
        if self.trainer is not None and self.trainer.training:
            self.batches_seen += 1
        return batch

    def check_goes_on(self, state_dict: dict[str, Any]) -> None:
        """Raise UserError if this is not the data on which the checkpoint was trained."""

    def state_dict(self) -> dict[str, Any]:
        return {"batches_seen": self.batches_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches_seen = int(state_dict["batches_seen"])
