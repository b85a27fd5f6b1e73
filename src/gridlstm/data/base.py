"""What every data module yields and publishes.

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


def owned_rows(rows: int, rank: int, world_size: int, name: str = "batch_size") -> range:
    """Return the rows of the global batch, or of what ``name`` counts, that one rank computes.

    The partition is contiguous and fixed, so a rank keeps its streams for the whole run; sizes differ by at most one.

    Raises:
        UserError: fewer rows than ranks.
    """
    if rows < world_size:
        raise UserError(
            f"{name}={rows} is global and cannot be divided over {world_size} processes: every process needs at least "
            f"one row. Raise {name}, or take fewer processes."
        )
    return range(rank * rows // world_size, (rank + 1) * rows // world_size)


class SequenceData(L.LightningDataModule):
    """Base of all data modules: the global batch, its partition over ranks, and the position in the training stream.

    Training batches are an endless sequence, a pure function of (seed, batch number), so that a resumed run goes on
    with the batch after the last one it trained on, and any number of ranks sees the same global batches.

    Subclasses implement ``spec`` and the three ``*_dataloader`` methods, whose loaders yield what this rank owns. What
    else a command asks of them is declared here, with the answer of data that is no text.

    Args:
        batch_size: rows of one global batch, over all ranks.
        seed: of the training stream, 0 or more; evaluation data does not depend on it.

    Raises:
        ValueError: no row, or a seed below 0.
    """

    curriculum_samples: int = 0
    """Training samples after which a curriculum has all lengths open; 0 where there is none."""

    counts_batches: bool = True
    """True where the batches of an evaluation are counted before they are read, so that a share of them can be read."""

    changed: bool = False
    """True once the state of a checkpoint was loaded that was trained on other data."""

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        self.batch_size = batch_size
        self.seed = seed
        self.batches_seen = 0
        """Global training batches taken so far; part of every checkpoint."""

    @property
    def spec(self) -> DataSpec:
        raise NotImplementedError(f"{type(self).__name__} must define spec")

    @property
    def expected_spec(self) -> DataSpec | None:
        """The sizes as far as they are known before anything is read; None where nothing is."""
        return None

    @property
    def called(self) -> str:
        """The name of the data in messages."""
        return type(self).__name__

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The symbols by their ids; None where the data is no text."""
        return None

    def text(self, split: Split) -> NDArray[np.integer[Any]]:
        """Return the ids of a split, in the order of the text.

        Raises:
            ValueError: the data is no text.
        """
        raise ValueError(f"{self.called} is no text")

    def test_on_all(self) -> None:
        """Make the test split all of the data.

        Raises:
            ValueError: the samples are drawn, without an end.
        """
        raise ValueError(f"the samples of {self.called} have no end")

    def check(self) -> None:
        """Raise UserError where the data cannot be had, as far as that shows without reading or downloading."""

    def check_processes(self, number: int) -> None:
        """Raise UserError where so many processes cannot share the batches."""
        owned_rows(self.batch_size, 0, number)

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
        """Raise UserError where this is not the data that a checkpoint was trained on."""

    def state_dict(self) -> dict[str, Any]:
        return {"batches_seen": self.batches_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches_seen = int(state_dict["batches_seen"])
