"""Base of tasks with finite training data: samples chosen by index, in a new order for each epoch."""

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from gridlstm.data.base import SequenceData, Split, owned_rows, owned_samples
from gridlstm.data.spec import DataSpec
from gridlstm.errors import UserError


class Drawn(int):
    """Index of a training sample that also carries its epoch, so that augmentation can depend on both.

    A data set can use it like any other integer.
    """

    epoch: int

    def __new__(cls, index: int, epoch: int) -> "Drawn":
        drawn = super().__new__(cls, index)
        drawn.epoch = epoch
        return drawn


class MapData(SequenceData):
    """Samples of a map-style ``torch.utils.data.Dataset``.

    Training: all samples in an order drawn from (seed, 0), then all in an order drawn from (seed, 1), and so on, cut
    into batches. A batch may therefore hold the last samples of an epoch and the first of the next, and every epoch has
    all samples once. Batch n is a function of (seed, n) alone: a run can resume within an epoch, and each rank takes
    its rows of the batch.

    Evaluation: every sample once; ranks share each batch, as in training.

    Subclasses implement ``spec``, ``dataset`` and ``collate``, and read files in ``setup``. Indices of training samples
    are of class ``Drawn``. A subclass may order the samples of an epoch in its own way: see ``order``.

    Args:
        batch_size, seed: see ``SequenceData``.
    """

    @property
    def expected_spec(self) -> DataSpec | None:
        return self.spec

    def dataset(self, split: Split) -> Dataset[Any]:
        """Return the samples of a split, which must have a length."""
        raise NotImplementedError(f"{type(self).__name__} must define dataset")

    def collate(self, samples: list[Any]) -> Any:
        """Return one batch of these samples. If lengths differ, pad them, with ``loss_mask`` false on the padding."""
        raise NotImplementedError(f"{type(self).__name__} must define collate")

    def order(self, epoch: int, samples: int) -> NDArray[np.int64]:
        """Return the order of the training samples in an epoch: a permutation that depends on (seed, epoch) alone.

        The orders of all epochs, one after the other, are cut into batches. The first sample of epoch e is therefore in
        row (e times ``samples``) modulo ``batch_size`` of its batch.
        """
        return np.random.default_rng((self.seed, epoch)).permutation(samples)

    def arranged(self, batches: list[list[int]]) -> list[list[int]]:
        """Return a rank's parts of the evaluation batches in the order in which they are read, equal for all ranks."""
        return batches

    def check_processes(self, number: int) -> None:
        super().check_processes(number)
        self._samples("train")
        for split in ("val", "test"):  # now, and not only after the training
            owned_rows(self._samples(split), 0, number, f"the number of {split} samples")

    def train_dataloader(self) -> DataLoader[Any]:
        dataset, samples = self.dataset("train"), self._samples("train")
        rows = _TrainingRows(samples, self.batch_size, self.rows, self.order, first_batch=self.batches_seen)
        return DataLoader(dataset, batch_sampler=rows, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test")

    def _evaluation(self, split: Literal["val", "test"]) -> DataLoader[Any]:
        world_size, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        parts = owned_samples(self._samples(split), self.batch_size, rank, world_size)
        batches = [part for part in self.arranged([list(part) for part in parts]) if part]
        return DataLoader(self.dataset(split), batch_sampler=batches, collate_fn=self.collate)

    def _samples(self, split: Split) -> int:
        """Return the number of samples of a split.

        Raises:
            UserError: there is none.
        """
        dataset: Any = self.dataset(split)
        if (samples := len(dataset)) < 1:
            raise UserError(f"{self.called} has no {split} samples, expected at least one. Use other data.")
        return samples


class _TrainingRows(Sampler[list[int]]):
    """Endless batches of the indices that this rank owns; every iterator starts again."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        rows: range,
        order: Callable[[int, int], NDArray[np.int64]],
        first_batch: int,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.rows = rows
        self.order = lru_cache(maxsize=2)(order)  # a batch may span two epochs
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in itertools.count(self.first_batch):
            yield [self._drawn(batch * self.batch_size + row) for row in self.rows]

    def _drawn(self, place: int) -> Drawn:
        epoch, place = divmod(place, self.samples)
        return Drawn(int(self.order(epoch, self.samples)[place]), epoch)
