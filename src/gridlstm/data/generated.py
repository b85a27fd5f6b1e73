"""Base of tasks with generated samples: endless fresh training data, fixed evaluation sets.

The loader yields sample indices; the samples themselves are generated on the training device.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from gridlstm.data.base import SequenceData, owned_rows, owned_samples
from gridlstm.data.spec import DataSpec

TRAIN, VAL, TEST = range(3)
"""Splits, as parts of the random key; two splits share samples only by chance."""


MOST_JUDGED = 10**7
"""Largest number of samples of a validation or test."""
MOST_SAMPLES = 2**40
"""Largest number of samples of a curriculum step, which keeps indices far below the limit of int64."""

_SIZES = {VAL: "num_val", TEST: "num_test"}


class Draw(NamedTuple):
    """Indices of the samples of one batch."""

    split: int
    samples: Tensor
    """(B,) int64 global sample indices."""


class _TrainDraws(IterableDataset[Draw]):
    """Batches of sample indices: batch n holds n * batch_size + row, for the rows that this rank owns."""

    def __init__(self, first_batch: int, batch_size: int, rows: range) -> None:
        self.first_batch = first_batch
        self.batch_size = batch_size
        self.rows = rows

    def __iter__(self) -> Iterator[Draw]:
        index = torch.arange(self.rows.start, self.rows.stop) + self.first_batch * self.batch_size
        while True:
            yield Draw(TRAIN, index)
            index = index + self.batch_size


class GeneratedData(SequenceData):
    """Samples that are a pure function of (seed, split, global sample index).

    Args:
        batch_size: rows of one global batch.
        seed: seed of the training samples. Evaluation samples have a fixed key, so that they are equal for all seeds.
        num_val: samples of each validation.
        num_test: samples of the final test.
        curriculum: training samples after which the next larger problems are allowed; 0 allows all.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, batch_size: int, seed: int, num_val: int, num_test: int, curriculum: int = 0) -> None:
        super().__init__(batch_size, seed)
        for name, size in (("num_val", num_val), ("num_test", num_test)):
            if not 1 <= size <= MOST_JUDGED:
                raise ValueError(f"{name} must be from 1 to {MOST_JUDGED:,}, got {size:,}.")
        if not 0 <= curriculum <= MOST_SAMPLES:
            raise ValueError(f"curriculum must be a number of samples from 0 to 2^40, got {curriculum}.")
        self.curriculum = curriculum
        self.sizes = {VAL: num_val, TEST: num_test}

    @property
    def expected_spec(self) -> DataSpec:
        return self.spec

    def check_processes(self, number: int) -> None:
        super().check_processes(number)
        for split, name in _SIZES.items():
            owned_rows(self.sizes[split], 0, number, name)

    def generate(self, key: tuple[int, ...], index: Tensor) -> Any:
        """Return the samples with these indices, on the device of ``index``."""
        raise NotImplementedError(f"{type(self).__name__} must define generate")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        draw = super().on_after_batch_transfer(batch, dataloader_idx)
        seed = self.seed if draw.split == TRAIN else 0
        samples = self.generate((seed, draw.split), draw.samples)
        # Lightning converts a batch to the precision of the network before it calls this.
        return samples if self.trainer is None else self.trainer.precision_plugin.convert_input(samples)

    def train_dataloader(self) -> DataLoader[Draw]:
        return DataLoader(_TrainDraws(self.batches_seen, self.batch_size, self.rows), batch_size=None)

    def val_dataloader(self) -> DataLoader[Draw]:
        return self._evaluation_draws(VAL)

    def test_dataloader(self) -> DataLoader[Draw]:
        return self._evaluation_draws(TEST)

    def _evaluation_draws(self, split: int) -> DataLoader[Draw]:
        world_size, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        parts = owned_samples(self.sizes[split], self.batch_size, rank, world_size)
        draws = [Draw(split, torch.arange(part.start, part.stop)) for part in parts if part]
        return DataLoader(draws, batch_size=None)  # type: ignore[arg-type]  # a list is a map-style data set
