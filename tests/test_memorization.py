"""The memorization task: the layout of a sample, and samples that depend only on seed, split and index."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.precision import Precision

from gridlstm.data.base import Batch
from gridlstm.data.counter import random_integers
from gridlstm.data.generated import TEST, TRAIN, VAL
from gridlstm.data.memorization import MemorizationData
from gridlstm.errors import UserError


def batches(data: MemorizationData, loader: str, count: int) -> list[Batch]:
    draws = iter(getattr(data, f"{loader}_dataloader")())
    return [data.on_after_batch_transfer(next(draws), 0) for _ in range(count)]


def on_rank(data: MemorizationData, rank: int, world_size: int) -> MemorizationData:
    # The data read only these attributes of a trainer.
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank, world_size=world_size, training=True, precision_plugin=Precision()
    )
    return data


def test_a_sample_has_the_string_as_input_and_then_as_target() -> None:
    data = MemorizationData(length=3, alphabet=9, batch_size=50, seed=1)
    batch = data.generate((1, TRAIN), torch.arange(50))
    answer = batch.inputs[:, 1:4]
    nothing = torch.zeros(50, 1, dtype=torch.int64)
    assert answer.min() == 1
    assert answer.max() == 9
    assert torch.equal(batch.inputs, torch.cat([nothing, answer, nothing, nothing, nothing, nothing], dim=1))
    assert torch.equal(batch.targets, torch.cat([nothing, nothing, nothing, nothing, answer, nothing], dim=1))
    assert batch.loss_mask.all()
    assert batch.answer_mask.tolist() == [[False] * 4 + [True] * 3 + [False]] * 50
    assert batch.reset.all()


def test_ranks_share_the_global_batch() -> None:
    whole = batches(MemorizationData(2, 5, batch_size=7, seed=3), "train", 3)
    parts = [batches(on_rank(MemorizationData(2, 5, batch_size=7, seed=3), r, 3), "train", 3) for r in range(3)]
    for n, batch in enumerate(whole):
        assert torch.equal(batch.inputs, torch.cat([part[n].inputs for part in parts]))


@pytest.mark.parametrize("loader", ["val", "test"])
def test_ranks_share_each_batch_of_an_evaluation(loader: str) -> None:
    """Therefore a limit of batches leaves them the samples that it leaves one process."""
    make = lambda: MemorizationData(2, 50, batch_size=4, seed=3, num_val=21, num_test=21)  # noqa: E731
    whole = batches(make(), loader, 6)
    parts = []
    for rank in range(3):
        data = on_rank(make(), rank, 3)
        parts.append(batches(data, loader, len(getattr(data, f"{loader}_dataloader")())))
    assert [len(batch.inputs) for batch in whole] == [4, 4, 4, 4, 4, 1]
    assert sorted(map(len, parts)) == [5, 5, 6]
    for n, batch in enumerate(whole):
        assert torch.equal(batch.inputs, torch.cat([part[n].inputs for part in parts if n < len(part)]))


def test_resumes_with_the_next_batch() -> None:
    through = batches(MemorizationData(2, 50, batch_size=4, seed=3), "train", 5)
    data = MemorizationData(2, 50, batch_size=4, seed=3)
    data.load_state_dict({"batches_seen": 3})
    assert torch.equal(batches(data, "train", 1)[0].inputs, through[3].inputs)


def test_counts_training_batches_only() -> None:
    data = on_rank(MemorizationData(2, 5, batch_size=4, seed=3), 0, 1)
    batches(data, "train", 3)
    data.trainer.training = False  # type: ignore[union-attr]
    batches(data, "val", 2)
    assert data.state_dict() == {"batches_seen": 3}


def test_another_seed_or_split_gives_other_samples() -> None:
    index = torch.arange(100)
    drawn = {key: random_integers(key, index, 20, 64) for key in [(0, TRAIN), (1, TRAIN), (0, VAL), (0, TEST)]}
    for a in drawn:
        for b in drawn:
            same = (drawn[a] == drawn[b]).double().mean()
            # Independent draws agree at a rate of 1/64 = 0.0156; the standard deviation for 2000 draws is 0.0028.
            assert same == 1 if a == b else same < 0.03


def test_the_seed_decides_the_training_samples_alone() -> None:
    def inputs(seed: int, loader: str) -> torch.Tensor:
        (batch,) = batches(MemorizationData(20, 64, batch_size=50, seed=seed, num_val=50, num_test=50), loader, 1)
        return batch.inputs

    assert not torch.equal(inputs(1, "train"), inputs(2, "train"))
    for loader in ("val", "test"):
        assert torch.equal(inputs(1, loader), inputs(2, loader))
    assert not torch.equal(inputs(1, "val"), inputs(1, "test"))


def test_integers_are_uniform_and_independent() -> None:
    values = random_integers((7, 0), torch.arange(20_000), 4, 10)
    counts = torch.bincount(values.flatten(), minlength=10).double()
    # Chi-square with 9 degrees of freedom exceeds 40 once in 10^5 seeds; this seed is fixed.
    assert ((counts - 8000) ** 2 / 8000).sum() < 40
    pairs = torch.bincount(values[:, 0] * 10 + values[:, 1], minlength=100).double()
    assert ((pairs - 200) ** 2 / 200).sum() < 180  # 99 degrees of freedom
    neighbours = torch.bincount(values[:-1, 0] * 10 + values[1:, 0], minlength=100).double()
    assert ((neighbours - 199.99) ** 2 / 199.99).sum() < 180


def test_random_integers_equal_the_golden_values() -> None:
    assert random_integers((1, 0), torch.tensor([0, 10**12]), 5, 1000).tolist() == GOLDEN


GOLDEN = [[942, 882, 723, 752, 414], [785, 977, 549, 613, 366]]


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^length must be at least 1, got 0"):
        MemorizationData(length=0, alphabet=4, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0"):
        MemorizationData(length=1, alphabet=4, batch_size=0, seed=0)
    with pytest.raises(UserError, match=r"^batch_size=2 is global and cannot be divided over 3 processes"):
        _ = on_rank(MemorizationData(2, 5, batch_size=2, seed=0), 2, 3).rows
