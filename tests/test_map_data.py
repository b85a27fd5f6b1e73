"""Finite data: every epoch has every sample once, in a new order, for any number of ranks."""

from itertools import chain, islice, zip_longest
from types import SimpleNamespace

import pytest
import torch
from tests.finite import FiniteMemorization

from gridlstm.data.base import Batch
from gridlstm.errors import UserError


class Numbers(FiniteMemorization):
    """Data whose sample n is the number n + 1."""

    def __init__(self, train: int = 17, val: int = 7, batch_size: int = 5, seed: int = 3) -> None:
        super().__init__(1, 100, batch_size, seed)
        self.datasets = {
            name: torch.utils.data.TensorDataset(torch.arange(1, size + 1)[:, None])  # type: ignore[dict-item]
            for name, size in {"train": train, "val": val, "test": val}.items()
        }

    def collate(self, samples: list[tuple[torch.Tensor]]) -> Batch:  # type: ignore[override]
        return super().collate([sample for (sample,) in samples])


def on_rank(data: Numbers, rank: int, world_size: int) -> Numbers:
    # The data read only these attributes of a trainer.
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, training=True)  # type: ignore[assignment]
    return data


def numbers(data: Numbers, batches: int, loader: str = "train") -> list[list[int]]:
    return [batch.inputs.flatten().tolist() for batch in islice(getattr(data, f"{loader}_dataloader")(), batches)]


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own() -> None:
    stream = [*chain(*numbers(Numbers(), batches=17))]  # five epochs of 17 samples
    epochs = [stream[start : start + 17] for start in range(0, len(stream), 17)]
    assert all(sorted(epoch) == list(range(1, 18)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert [*chain(*numbers(Numbers(seed=4), batches=17))] != stream


def test_data_resumes_in_the_middle_of_an_epoch() -> None:
    data = Numbers()
    data.load_state_dict({"batches_seen": 2})
    assert numbers(data, 5) == numbers(Numbers(), 7)[2:]


def test_a_batch_may_be_larger_than_an_epoch() -> None:
    (batch,) = numbers(Numbers(train=2, batch_size=5), 1)
    assert [sorted(batch[:2]), sorted(batch[2:4])] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_batch_of_training_and_evaluation(world_size: int) -> None:
    """Therefore a limit of batches leaves them the samples that it leaves one process."""
    ranks = [on_rank(Numbers(), rank, world_size) for rank in range(world_size)]
    parts = [numbers(rank, 7) for rank in ranks]
    assert [[*chain(*(part[n] for part in parts))] for n in range(7)] == numbers(Numbers(), 7)
    parts = [numbers(rank, 9, "val") for rank in ranks]
    shared = [[*chain(*batch)] for batch in zip_longest(*parts, fillvalue=[])]
    assert shared == numbers(Numbers(), 9, "val") == [[1, 2, 3, 4, 5], [6, 7]]


def test_a_split_without_samples_is_refused() -> None:
    with pytest.raises(UserError, match="Numbers has no train samples, expected at least one"):
        Numbers(train=0).train_dataloader()
    with pytest.raises(UserError, match="Numbers has no val samples"):
        Numbers(val=0).check_processes(1)


def test_fewer_evaluation_samples_than_processes_are_refused_before_training() -> None:
    Numbers(val=2).check_processes(2)
    with pytest.raises(UserError, match="the number of val samples=2 is global and cannot be divided over 3 processes"):
        Numbers(val=2).check_processes(3)
