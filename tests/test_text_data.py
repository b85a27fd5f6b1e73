"""The protocol of text data: streams, windows, resets, epochs, evaluation, ranks, checkpoints.

In most texts here, all characters differ and are in ascending order, so the id of a symbol is its position in the text.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from tests.conftest import compose
from torch import Tensor
from torch.nn.functional import cross_entropy

from gridlstm.data.base import Batch
from gridlstm.data.corpus import Corpus
from gridlstm.data.streams import split_text
from gridlstm.data.text import TextData
from gridlstm.data.text_file import File
from gridlstm.errors import UserError
from gridlstm.models.base import SequenceModel
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.tasks.carried_state import CarriedState
from gridlstm.tasks.language_model import LanguageModel
from gridlstm.training.build import check_task

LONGEST = 20_000
"""Longest text: the CJK block has no more characters."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


def places(directory: Path, length: int) -> Path:
    """Write a text whose ids are 0, 1, 2, ...; return its path."""
    path = directory / f"{length}.txt"
    if not path.exists():
        path.write_text("".join(chr(0x4E00 + place) for place in range(length)))
    return path


def make(directory: Path, length: int = 2000, **changes: Any) -> TextData:
    options = {"batch_size": 4, "seed": 1, "window": 5, "stream_length": 20, **changes}
    data = TextData(File(places(directory, length)), level="char", cache_dir=directory / "cache", **options)
    data.setup("fit")
    return data


def as_rank(data: TextData, rank: int, world_size: int) -> TextData:
    # The data read only these attributes of a trainer; two real trainers would need two processes.
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, training=True)  # type: ignore[assignment]
    return data


def take(data: TextData, count: int) -> list[Batch]:
    return list(itertools.islice(data.train_dataloader(), count))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stream_starts(data: TextData, count: int) -> list[int]:
    """Return the start positions of the first ``count`` streams, in the order of rounds and rows."""
    windows = data.stream_length // data.window
    rounds = -(-count // data.batch_size)
    starts = [batch.inputs[:, 0].tolist() for batch in take(data, rounds * windows)[::windows]]
    return list(itertools.chain(*starts))[:count]


# Symbols of the text, batch size, window, windows per stream; the training split is 0.9 of the text.
sizes = st.tuples(st.integers(60, 3000), st.integers(1, 7), st.integers(1, 7), st.integers(1, 5)).filter(
    lambda size: 0.85 * size[0] > size[2] * size[3]
)


@given(size=sizes, seed=st.integers(0, 5), first=st.integers(0, 200))
@settings(deadline=None, max_examples=60)
def test_training_batches_are_a_function_of_their_number(
    size: tuple[int, int, int, int], seed: int, first: int, directory: Path
) -> None:
    length, batch_size, window, windows = size
    data = make(directory, length, batch_size=batch_size, seed=seed, window=window, stream_length=window * windows)
    end = data.parts[0].stop
    from_start = take(data, first + 2 * windows + 2)[first:]
    data.batches_seen = first
    resumed = take(data, 2 * windows + 2)
    for number, (a, b) in enumerate(zip(from_start, resumed, strict=True), start=first):
        assert same(a, b)
        assert a.inputs.shape == a.targets.shape == (batch_size, window)
        assert a.inputs.dtype == a.targets.dtype == torch.int64
        # Positions are consecutive and inside the training split; the target is the next symbol.
        assert torch.equal(a.inputs, a.inputs[:, :1] + torch.arange(window))
        assert torch.equal(a.targets, a.inputs + 1)
        assert int(a.targets.max()) < end
        assert bool(a.loss_mask.all())
        assert bool(a.answer_mask.all())
        assert a.reset.tolist() == [number % windows == 0] * batch_size
    for number, (a, b) in enumerate(itertools.pairwise(from_start), start=first + 1):
        if number % windows:  # inside a stream, each window continues where the last one ended
            assert torch.equal(b.inputs[:, 0], a.targets[:, -1])


@given(size=sizes, seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_every_epoch_covers_every_stream_once(size: tuple[int, int, int, int], seed: int, directory: Path) -> None:
    length, batch_size, window, windows = size
    stream_length = window * windows
    data = make(directory, length, batch_size=batch_size, seed=seed, window=window, stream_length=stream_length)
    epoch, train = data.streams.per_epoch, data.parts[0]
    # Because of the moving offset, an epoch misses at most the length of two streams.
    assert epoch == max(1, len(train) // stream_length - 1)
    starts = stream_starts(data, 3 * epoch)
    for first in (0, epoch, 2 * epoch):
        ordered = sorted(starts[first : first + epoch])
        assert train.start <= ordered[0] < train.start + stream_length
        assert ordered == [ordered[0] + place * stream_length for place in range(epoch)]
        assert ordered[-1] + stream_length < train.stop


def test_orders_and_offsets_differ_by_epoch_and_seed(directory: Path) -> None:
    drawn = {}
    for seed in (1, 2):
        data = make(directory, 20_000, seed=seed)
        epoch = data.streams.per_epoch
        assert epoch == 899
        starts = stream_starts(data, 4 * epoch)
        for number in range(4):
            part = starts[number * epoch : (number + 1) * epoch]
            drawn[seed, number] = (min(part), [(start - min(part)) // 20 for start in part])
    # Of 8 orders out of 899!, no two are equal by chance; of 8 offsets out of 20, some may be.
    assert len({tuple(order) for _, order in drawn.values()}) == 8
    assert len({offset for offset, _ in drawn.values()}) >= 4
    assert all(order != sorted(order) for _, order in drawn.values())


def test_every_offset_occurs(directory: Path) -> None:
    data = make(directory, 400, stream_length=20)
    epoch = data.streams.per_epoch
    starts = stream_starts(data, 300 * epoch)
    offsets = {min(starts[first : first + epoch]) for first in range(0, len(starts), epoch)}
    # The probability that 300 draws miss one of 20 offsets is 20 * 0.95**300 = 4e-6.
    assert offsets == set(range(20))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [3, 4, 7])
def test_ranks_share_the_training_batches(directory: Path, batch_size: int, world_size: int) -> None:
    everything = take(make(directory, batch_size=batch_size), 40)
    ranks = [take(as_rank(make(directory, batch_size=batch_size), rank, world_size), 40) for rank in range(world_size)]
    for whole, *parts in zip(everything, *ranks, strict=True):
        assert all(len(part.reset) > 0 for part in parts)
        for field, tensors in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(tensors), field)


def judged(batches: Iterator[Batch] | list[Batch]) -> list[tuple[int, int]]:
    """Return all (input, target) pairs that the masks include."""
    pairs: list[tuple[int, int]] = []
    for batch in batches:
        assert torch.equal(batch.loss_mask, batch.answer_mask)
        assert not batch.inputs[~batch.loss_mask].any()
        assert not batch.targets[~batch.loss_mask].any()
        inputs, targets = batch.inputs[batch.loss_mask], batch.targets[batch.loss_mask]
        pairs += zip(inputs.tolist(), targets.tolist(), strict=True)
    return pairs


@given(
    length=st.integers(1, 50),
    batch_size=st.integers(1, 7),
    window=st.integers(1, 7),
    windows=st.integers(1, 5),
    val=st.integers(2, 300),
    world_size=st.integers(1, 3),
)
@settings(deadline=None, max_examples=100)
def test_evaluation_predicts_every_symbol_but_the_first_once(
    length: int, batch_size: int, window: int, windows: int, val: int, world_size: int, directory: Path
) -> None:
    world_size = min(world_size, batch_size)
    length += val + 3 + 35  # the longest stream
    train = length - val - 3
    options = {"window": window, "stream_length": window * windows, "splits": (train, val, 3)}
    ranks = [
        as_rank(make(directory, length, batch_size=batch_size, **options), rank, world_size)
        for rank in range(world_size)
    ]
    pairs = [judged(data.val_dataloader()) for data in ranks]
    assert sorted(itertools.chain(*pairs)) == [(place, place + 1) for place in range(train, train + val - 1)]
    tests = [judged(data.test_dataloader()) for data in ranks]
    assert sorted(itertools.chain(*tests)) == [(length - 3, length - 2), (length - 2, length - 1)]


def rows_by_stream(batches: list[Batch]) -> list[list[int]]:
    """Return the inputs of each stream, which runs from one reset to the next."""
    finished: list[list[int]] = []
    running: list[list[int]] = []
    for batch in batches:
        if bool(batch.reset.any()):
            assert bool(batch.reset.all())
            finished += running
            running = [[] for _ in batch.reset]
        for stream, inputs, mask in zip(running, batch.inputs, batch.loss_mask, strict=True):
            stream += inputs[mask].tolist()
    return finished + running


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 100])
def test_evaluation_streams_do_not_depend_on_the_batch_size(directory: Path, batch_size: int) -> None:
    # 89 predictions in streams of 20 are four whole streams and nine symbols, whose last window is padded.
    data = make(directory, 2000, batch_size=batch_size, splits=(1800, 90, 110))
    expected = [list(range(1800 + first, min(1820 + first, 1889))) for first in range(0, 89, 20)]
    assert rows_by_stream(list(data.val_dataloader())) == expected
    assert all(len(batch.reset) <= batch_size for batch in data.val_dataloader())


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("val", [90, 61, 62, 200, 2])
def test_ranks_share_the_evaluation_rows(directory: Path, val: int, world_size: int) -> None:
    options = {"batch_size": 3, "splits": (1500, val, 200)}
    everything = list(make(directory, **options).val_dataloader())
    ranks = [list(as_rank(make(directory, **options), rank, world_size).val_dataloader()) for rank in range(world_size)]
    assert max(len(batches) for batches in ranks) == len(everything)

    def held(batch: Batch) -> Tensor:
        return batch.inputs[batch.loss_mask.any(dim=1)]  # a rank may omit rows that are only padding

    for number, whole in enumerate(everything):
        parts = [held(batches[number]) for batches in ranks if number < len(batches)]
        assert torch.equal(torch.cat(parts), held(whole))


def test_a_rank_without_streams_yields_nothing(directory: Path) -> None:
    data = as_rank(make(directory, splits=(1500, 21, 200)), 1, 2)  # rank 0 has the only stream
    assert list(data.val_dataloader()) == []
    assert len(list(data.test_dataloader())) > 0


def test_val_symbols_shorten_validation_only_during_training(directory: Path) -> None:
    data = make(directory, splits=(1500, 200, 300), val_symbols=50)
    assert judged(data.val_dataloader()) == [(place, place + 1) for place in sorted(range(1500, 1549), key=key_of)]
    assert len(judged(data.test_dataloader())) == 299
    data.setup("validate")
    assert len(judged(data.val_dataloader())) == 199
    data.setup("fit")
    assert len(judged(data.val_dataloader())) == 49
    assert len(judged(make(directory, splits=(1500, 200, 300), val_symbols=10**9).val_dataloader())) == 199


def key_of(place: int) -> tuple[int, int]:
    """Return the sort key of the order in which rows are read: by window of 5, then by stream of 20."""
    return ((place - 1500) % 20 // 5, (place - 1500) // 20)


def test_the_same_bytes_are_the_same_data_at_both_levels(directory: Path) -> None:
    path = Path(os.environ.get("GRIDLSTM_DATA", "/nonexistent")) / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        pytest.skip("needs tinyshakespeare/input.txt under the directory that GRIDLSTM_DATA names")
    octets = TextData(File(path), 15, 1, "byte", cache_dir=directory / "cache")
    chars = TextData(File(path), 15, 1, "char", cache_dir=directory / "cache")
    assert octets.spec == replace(chars.spec, unit="bytes")
    assert octets.spec.input_size == octets.spec.output_size == 65
    assert octets.spec.sequence_length == 50
    assert all(same(a, b) for a, b in zip(take(octets, 250), take(chars, 250), strict=True))
    assert sum(int(batch.loss_mask.sum()) for batch in octets.val_dataloader()) == len(octets.parts[1]) - 1
    text = octets.corpus.vocabulary.decode(take(octets, 1)[0].inputs[0])
    assert text in path.read_text()


def test_splits_as_fractions_and_as_numbers() -> None:
    assert split_text(100_000_000, (0.9, 0.05, 0.05)) == (
        range(90_000_000),
        range(90_000_000, 95_000_000),
        range(95_000_000, 100_000_000),
    )
    assert split_text(1000, [900, 50, 50]) == (range(900), range(900, 950), range(950, 1000))
    assert split_text(1000, [100, 20, 30]) == (range(100), range(100, 120), range(120, 150))
    assert split_text(100, [0.333333, 0.333333, 0.333334]) == (range(33), range(33, 67), range(67, 100))
    splits = list(compose("experiment=torch7/wikipedia").task.data.splits)
    assert split_text(100_000_000, splits) == split_text(100_000_000, (95_000_000, 4_990_000, 10_000))


def test_splits_that_leave_most_text_unused_are_logged(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(directory, splits=(1500, 300, 100))
    assert "unused" not in caplog.text
    make(directory, splits=(100, 20, 30))
    assert "splits=[100, 20, 30] leaves 1,850 characters unused" in caplog.text


@given(length=st.integers(100, 10**9), val=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4))
@settings(max_examples=200)
def test_fractions_divide_the_whole_text(length: int, val: float, test: float) -> None:
    parts = split_text(length, (1 - val - test, val, test))
    assert [*parts[0][:1], *parts[2][-1:]] == [0, length - 1]
    assert parts[0].stop == parts[1].start
    assert parts[1].stop == parts[2].start
    for part, share in zip(parts, (1 - val - test, val, test), strict=True):
        assert abs(len(part) - share * length) <= 1.01  # both ends are rounded


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ((0.9, 0.1), "expected three"),
        ((0.9, 0.2, -0.1), "expected three"),
        (("a", 0.2, 0.1), "expected three"),
        ((0.8, 0.1, 0.05), r"sums to 0\.95"),
        ((1500, 300, 201), r"takes 2,001 symbols, but the text has 2,000"),
        ((90, 5, 5), r"100 of 2,000\. For shares use \[0\.9,0\.05,0\.05\]"),
        ((1.0, 0.0, 0.0), "leaves 0 of 2,000 symbols for validation"),
        ((1998, 2, 0), "leaves 0 of 2,000 symbols for test"),
        ((1998, 1, 1), "leaves 1 of 2,000 symbols for validation"),
    ],
)
def test_splits_that_do_not_fit_are_refused(directory: Path, splits: Any, message: str) -> None:
    with pytest.raises(UserError, match="^splits=.*" + message):
        make(directory, splits=splits)


@pytest.mark.parametrize(
    ("train", "advice"),
    [
        (105, {"stream_length": 98, "window": 7}),
        (99, {"stream_length": 98, "window": 7}),
        (4, {"stream_length": 3, "window": 3}),
    ],
)
def test_a_training_split_too_short_names_what_fits(directory: Path, train: int, advice: dict[str, int]) -> None:
    given = f"stream_length={advice['stream_length']} window={advice['window']}."
    with pytest.raises(UserError, match=f"has {train} symbols, and one stream needs 106") as caught:
        make(directory, stream_length=105, window=7, splits=(train, 20, 20))
    assert str(caught.value).endswith(given)
    fitting = make(directory, splits=(train, 20, 20), **advice)
    assert int(max(batch.targets.max() for batch in take(fitting, 60))) < train


def test_one_symbol_split_error_advises_a_longer_text(directory: Path) -> None:
    with pytest.raises(UserError, match=r"has 1 symbols, .* Use a longer text\.$"):
        make(directory, splits=(1, 20, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 6}, r"stream_length must be a multiple of window=6, got 20\. .*stream_length=18\."),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": 30}, r"stream_length must be a multiple of window=30, got 20\. .*stream_length=30"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"val_symbols": 1}, "val_symbols must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(directory: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(directory, **options)


def test_a_missing_name_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^path must name a text file, got ''"):
        File("")
    for path, reason in ((tmp_path, "it is a directory"), (tmp_path / "none.txt", "there is no such file")):
        with pytest.raises(UserError, match=f"^{path} cannot be read: {reason}. Name a text file .*: path="):
            TextData(File(path), 1, 1, cache_dir=tmp_path).setup()


def test_unreadable_path_error_gives_the_reason(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    reasons = {"x" * 300: "File name too long", ".": "it is a directory", "none": "there is no such file"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=rf"cannot be read: {reason}. Name a text file .*: task\.path="):
            check_task(job(f"task.path={tmp_path / name}", task="text"))


class Recorder(L.LightningModule):
    """Keeps the batches that it receives; its training has no purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[Batch] = []
        self.validated: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(steps: int, directory: Path) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    )


# Lightning's advice is for loaders that read from disk; these slice an array in memory.
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_resumed_run_continues_with_the_next_batch(directory: Path, tmp_path: Path) -> None:
    expected = take(make(directory), 12)
    first, run = Recorder(), trainer(7, tmp_path)
    run.fit(first, datamodule=make(directory, val_symbols=90))
    run.save_checkpoint(tmp_path / "last.ckpt")
    second = Recorder()
    trainer(12, tmp_path).fit(second, datamodule=make(directory), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert [len(first.trained), len(second.trained)] == [7, 5]
    assert all(same(a, b) for a, b in zip(first.trained + second.trained, expected, strict=True))
    # There is a sanity check of two batches before training, and a validation after step 5.
    assert len(judged(first.validated[2:])) == 89

    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["TextData"]["batches_seen"] == 7
    assert checkpoint["TextData"]["vocabulary"] == [0x4E00 + place for place in range(2000)]
    assert checkpoint["TextData"]["level"] == "char"
    changed = make(directory)
    changed._corpus = Corpus(np.roll(changed.corpus.ids, 1), changed.corpus.vocabulary)
    with pytest.raises(UserError, match="has changed since the checkpoint was written, at equal length"):
        trainer(12, tmp_path).fit(Recorder(), datamodule=changed, ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    for other, why in (
        (make(directory, 1999), "1 of its 2000 symbols do not occur"),
        (make(directory, 2001), r"it knows 2000 symbols .* 2001 .*, 1 of them unknown"),
    ):
        with pytest.raises(UserError, match=f"trained on another text: {why}"):
            trainer(12, tmp_path).fit(
                Recorder(), datamodule=other, ckpt_path=tmp_path / "last.ckpt", weights_only=False
            )


class Watched(LanguageModel):
    """Keeps the losses of its training steps."""

    def __init__(self, data: TextData, model: SequenceModel) -> None:
        super().__init__(model, data.spec, partial(torch.optim.SGD, lr=0.0))
        self.losses: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss))
        return loss


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("kind", [Grid2d, StackedLSTM])
def test_carried_windows_equal_one_pass_over_each_stream(
    kind: Callable[..., SequenceModel], directory: Path, tmp_path: Path
) -> None:
    """The state is reset at each stream and survives validation, which runs after five of the eight windows."""
    data = make(directory, 600, batch_size=3)
    torch.manual_seed(1)
    task = Watched(data, kind(600, 6, 2)).double()
    trainer(8, tmp_path).fit(task, datamodule=data)

    def nats(inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            return cross_entropy(task(inputs)[0].transpose(1, 2), targets, reduction="none")

    windows = take(make(directory, 600, batch_size=3), 8)
    expected = []
    for group in (windows[:4], windows[4:]):
        inputs = torch.cat([window.inputs for window in group], dim=1)
        targets = torch.cat([window.targets for window in group], dim=1)
        assert torch.equal(inputs[:, 1:], targets[:, :-1]), "three streams of 20 symbols"
        expected += nats(inputs, targets).unflatten(1, (4, 5)).mean((0, 2)).tolist()
    # Both are the same float64 sums, but matrix products of other shapes round differently.
    assert task.losses == pytest.approx(expected, rel=0, abs=1e-12)
    afresh = [float(nats(window.inputs, window.targets).mean()) for window in windows]
    assert [abs(a - b) > 1e-6 for a, b in zip(task.losses, afresh, strict=True)] == 2 * [False, True, True, True]


def test_a_state_without_tensors_is_carried_and_resumed() -> None:
    """A model that sees only its window, such as one of convolutions, has none."""

    class Window(SequenceModel):
        output_size = 3

        def initial_state(self, batch_size: int) -> tuple[()]:
            return ()

    alone = cast(L.Trainer, SimpleNamespace(world_size=1, global_rank=0))
    carried = CarriedState(Window())
    carried.training = ()
    resumed = CarriedState(Window())
    resumed.restore(carried.save(alone))
    assert not resumed.before(torch.ones(2, dtype=torch.bool), alone)


def test_a_restored_state_is_saved_again_before_it_is_used() -> None:
    alone = cast(L.Trainer, SimpleNamespace(world_size=1, global_rank=0))
    resumed = CarriedState(StackedLSTM(5, 4, 3))
    resumed.restore(leaves := [torch.randn(3, 2, 4), torch.randn(3, 2, 4)])
    saved = resumed.save(alone)
    assert saved is not None
    assert all(map(torch.equal, saved, leaves))


def test_a_checkpoint_of_another_level_is_refused(directory: Path) -> None:
    path = directory / "ascii.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 20)
    octets = TextData(File(path), 2, 1, "byte", 5, 20, cache_dir=directory / "cache")
    chars = TextData(File(path), 2, 1, "char", 5, 20, cache_dir=directory / "cache")
    state = octets.state_dict()
    octets.load_state_dict({**state, "batches_seen": 3})
    assert octets.batches_seen == 3
    with pytest.raises(UserError, match=r"level byte.*level char.*level=byte"):
        chars.load_state_dict(state)
    assert chars.batches_seen == 0


@pytest.mark.parametrize(
    ("length", "window", "batch_size", "expected"),
    [(600, 5, 4, 105), (60, 5, 4, 10), (60, 30, 4, 30), (20_000, 64, 1, 8960)],
)
def test_a_text_gets_streams_that_fit(
    directory: Path, length: int, window: int, batch_size: int, expected: int
) -> None:
    """Streams have the paper's length of 10,000, or less so that the training split has one for each row of a batch."""
    changes = {"window": window, "stream_length": None, "batch_size": batch_size, "splits": (0.9, 0.05, 0.05)}
    data = make(directory, length, **changes)
    assert data.stream_length == expected
    assert data.streams.per_epoch >= batch_size or expected == window, "a stream cannot be shorter than a window"
    assert data.evaluation_stream_length == 10_000 // window * window, "evaluation does not depend on the batch size"
    next(iter(data.train_dataloader()))


def test_the_log_names_the_entropy_of_the_validation_text(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A symbol of "abab…" has an entropy of one bit, and of zero bits given the one before it."""
    path = directory / "abab.txt"
    path.write_text("ab" * 500)
    with caplog.at_level(logging.INFO):
        TextData(File(path), 2, 1, cache_dir=directory / "cache").setup("fit")
    assert "entropy of the validation text: 1.000 bits per byte, 0.000 given" in caplog.text
