"""Any text as the paper models enwik8 (section 4.3): streams of symbols read in windows, with carried state.

Shape legend: B batch rows, T time steps (the window).
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from gridlstm.data.base import Batch, SequenceData, Split
from gridlstm.data.corpus import Corpus, check_level, read_corpus
from gridlstm.data.entropy import ngram_entropy
from gridlstm.data.source import FoundText, TextSource
from gridlstm.data.spec import Spec
from gridlstm.data.streams import PARTS, SHARES, Streams, split_parts, split_text
from gridlstm.data.vocabulary import Level, Vocabulary
from gridlstm.errors import UserError

log = logging.getLogger(__name__)


PAPER_STREAM = 10_000
MOST_FOR_YARDSTICK = 5_000
"""Largest number of symbols for which pairs are counted; the table of counts takes 200 MB."""
SEEN_EACH = 10
"""Mean number of occurrences of a symbol or pair that makes the entropy meaningful."""


class TextData(SequenceData):
    """Next-symbol prediction on a text, in windows of truncated backpropagation through time.

    Training: the split is cut into streams of ``stream_length`` symbols. Each row of a batch is a window of one stream.
    The next batch holds the next window of each stream. After the last window, every row starts a new stream with
    ``reset``. Each epoch visits all streams once. The order and the offset of the first stream are drawn from
    (seed, epoch).

    Evaluation: the split is cut into consecutive streams, each from a fresh state; the last one may be shorter. Every
    symbol except the first of the split is predicted once. The masks exclude the padding.

    A text that comes in parts uses them as splits. The share of a missing validation or test is cut from the end of
    train, as ``splits`` says.

    Args:
        source: the text; see ``TextSource``.
        batch_size, seed: see ``SequenceData``.
        level: symbol unit, "byte", "char" or "word".
        window: T, symbols of one batch row.
        stream_length: symbols through which the state is carried, a multiple of ``window``. None for 10,000 as in the
            paper, or fewer if the text is too short to give every row its own stream.
        splits: training, validation and test in text order: three fractions that sum to 1, three numbers of symbols, or
            the name of a division that the source defines.
        val_symbols: limit on the symbols of the validation split during training; None for all. A separate validation
            (``setup("validate")``) always uses all.
        cache_dir, max_words: options for decoding the text; see ``read_corpus``.

    Raises:
        ValueError: sizes do not fit together, or the level or division does not exist.
        UserError: from ``setup``, if the text cannot be read or its training split is shorter than a stream.
    """

    counts_batches = False

    def __init__(
        self,
        source: TextSource,
        batch_size: int,
        seed: int,
        level: Level = "byte",
        window: int = 50,
        stream_length: int | None = None,
        splits: Sequence[float] | str = SHARES,
        val_symbols: int | None = None,
        cache_dir: str | Path | None = None,
        max_words: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed)
        check_level(level, max_words)
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}.")
        if stream_length is not None and (stream_length < window or stream_length % window):
            raise ValueError(
                f"stream_length must be a multiple of window={window}, got {stream_length}. Use for example "
                f"stream_length={max(1, stream_length // window) * window}."
            )
        if val_symbols is not None and val_symbols < 2:
            raise ValueError(f"val_symbols must be at least 2, got {val_symbols}.")
        if isinstance(splits, str):
            if splits not in source.named_splits:
                known = "".join(f"{name}, " for name in source.named_splits)
                raise ValueError(f"splits must be {known}or three numbers, got {splits!r}.")
            splits = source.named_splits[splits]
        self.source = source
        self.level = level
        self.window = window
        self._stream_length = stream_length
        self.splits = tuple(splits)
        self.val_symbols = val_symbols
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.max_words = max_words
        self.unit = {"byte": "bytes", "char": "characters", "word": "words"}[level]
        self._found: FoundText | None = None
        self._corpus: Corpus | None = None
        self._test_on_all = False
        self._evaluated = False
        self._fitting = True
        self._told = False

    @property
    def expected_spec(self) -> Spec:
        return Spec(self.source.symbols, self.source.symbols, self.window, unit=self.unit)

    def check(self) -> None:
        self.source.check()

    @property
    def found(self) -> FoundText:
        """The text on disk; found, downloaded or joined on first use."""
        if self._found is None:
            self._found = self.source.find(self.cache_dir, self._evaluated)
        return self._found

    @property
    def called(self) -> str:
        # Parts are joined in the cache, in a file whose name means nothing to the user.
        return str(self.found.file) if self.found.parts is None else self.source.name

    @property
    def corpus(self) -> Corpus:
        """The text, read on first use."""
        if self._corpus is None:
            self._corpus = read_corpus(self.found.file, self.level, self.cache_dir, self.max_words)
        return self._corpus

    @property
    def vocabulary(self) -> Vocabulary:
        return self.corpus.vocabulary

    def text(self, split: Split) -> NDArray[np.integer[Any]]:
        part = dict(zip(get_args(Split), self.parts, strict=True))[split]
        return self.corpus.ids[part.start : part.stop]

    @property
    def parts(self) -> tuple[range, range, range]:
        """Positions of the training, validation and test split in the text."""
        if self.found.parts is not None:
            return split_parts(self.found.parts[self.level], self.splits)
        return split_text(len(self.corpus.ids), self.splits)

    @property
    def stream_length(self) -> int:
        """Symbols through which the state is carried in training."""
        if self._stream_length is not None:
            return self._stream_length
        # One more than rows, because an epoch leaves out the stream that its offset cuts (``Streams``).
        longest = min(PAPER_STREAM, len(self.parts[0]) // (self.batch_size + 1))
        return max(longest // self.window, 1) * self.window

    @property
    def evaluation_stream_length(self) -> int:
        """Symbols through which the state is carried in evaluation, independent of the batch size."""
        return self._stream_length or max(PAPER_STREAM // self.window, 1) * self.window

    @property
    def streams(self) -> Streams:
        """Streams of the training split."""
        return Streams(self.parts[0], self.stream_length, self.window, self.seed)

    def test_on_all(self) -> None:
        self._test_on_all = True

    def setup(self, stage: str | None = None) -> None:
        self._fitting = stage != "validate"
        if self._test_on_all:
            if (length := len(self.corpus.ids)) < 2:
                raise UserError(f"{self.called} has {length} symbol. Testing needs at least 2.")
            return
        parts = self.parts  # reads the text and checks that the splits fit it
        # A text may be shorter than a training stream if it is only evaluated.
        training = "" if stage in ("validate", "test") else self._epoch()
        if not self._told:
            self._told = True
            sizes = " + ".join(f"{len(part):,}" for part in parts)
            log.info("%s %s for training, validation and test%s", sizes, self.unit, training)
            unused = len(self.corpus.ids) - sum(map(len, parts))
            if 2 * unused > len(self.corpus.ids):  # the numbers may be intended for another text
                log.warning("splits=%s leaves %s %s unused", list(self.splits), f"{unused:,}", self.unit)
            self._log_yardstick()
            self._warn_of_unread_shares()

    def _warn_of_unread_shares(self) -> None:
        if self.found.parts is None or self.splits == SHARES:
            return
        lengths, shares = self.found.parts[self.level], zip(PARTS[1:], self.splits[1:], strict=True)
        if own := " and ".join(name for name, share in shares if share and name in lengths):
            log.warning("splits=%s has no effect on %s: the text has its own", list(self.splits), own)

    def _epoch(self) -> str:
        return f"; an epoch is {self.streams.per_epoch} streams of {self.stream_length}"

    def _log_yardstick(self) -> None:
        """Log the entropy that a model must beat to have learned more than symbol and pair frequencies."""
        symbols = len(self.corpus.vocabulary)
        if symbols > MOST_FOR_YARDSTICK:
            return
        entropy = ngram_entropy(self.corpus.ids[self.parts[1].start : self.parts[1].stop], symbols)
        # The entropy of a short text is too low: its own counts predict it better than any model could.
        if len(self.parts[1]) < SEEN_EACH * entropy.symbols:
            return
        found = f"{entropy.unigram:.3f} bits per {self.unit.removesuffix('s')}"
        if len(self.parts[1]) >= SEEN_EACH * entropy.pairs:
            found += f", {entropy.bigram:.3f} given the previous one (bigrams)"
        log.info("entropy of the validation text: %s", found)

    @property
    def spec(self) -> Spec:
        symbols = len(self.corpus.vocabulary)
        return Spec(symbols, symbols, sequence_length=self.window, unit=self.unit)

    @property
    def batches_per_epoch(self) -> int:
        windows = self.streams.per_epoch * (self.stream_length // self.window)
        return max(1, round(windows / self.batch_size))

    def train_dataloader(self) -> DataLoader[Batch]:
        first = self.batches_seen  # a second pass over this loader (debug=overfit) repeats the first
        return _loader(lambda: self._training_batches(first))

    def val_dataloader(self) -> DataLoader[Batch]:
        part = self.parts[1]
        if self._fitting and self.val_symbols is not None:
            part = part[: self.val_symbols]
        return _loader(lambda: self._evaluation_batches(part))

    def test_dataloader(self) -> DataLoader[Batch]:
        part = range(len(self.corpus.ids)) if self._test_on_all else self.parts[2]
        return _loader(lambda: self._evaluation_batches(part))

    def state_dict(self) -> dict[str, Any]:
        vocabulary = self.corpus.vocabulary
        own = {
            "level": vocabulary.level,
            "vocabulary": list(vocabulary.symbols),
            "symbols": len(self.corpus.ids),
            "crc32": self.corpus.crc32,
            "parts": self._boundaries(),
        }
        return super().state_dict() | own

    def _boundaries(self) -> list[list[int]]:
        """Return where training, validation and test begin and end."""
        return [[part.start, part.stop] for part in self.parts]

    def check_goes_on(self, state_dict: dict[str, Any]) -> None:
        known, own = Vocabulary(state_dict["level"], tuple(state_dict["vocabulary"])), self.corpus.vocabulary
        back = "Restore the text, or start a new run from these weights: init_from=…."
        if known != own:
            own.places_in(known)  # raises if the text has symbols that the checkpoint lacks
            lacking = len(set(known.symbols) - set(own.symbols))
            how = f"{lacking} of its {len(known)} symbols do not occur in" if lacking else "symbol counts differ in"
            raise UserError(f"the checkpoint was trained on another text: {how} {self.called}. {back}")
        was, now = state_dict.get("symbols"), len(self.corpus.ids)
        if was not in (None, now):
            raise UserError(
                f"{self.called} has {now:,} symbols, but had {was:,} when the checkpoint was written, so its streams "
                f"would begin elsewhere. {back}"
            )
        if state_dict.get("crc32", self.corpus.crc32) != self.corpus.crc32:
            raise UserError(f"{self.called} has changed since the checkpoint was written, at equal length. {back}")
        if state_dict.get("parts", self._boundaries()) != self._boundaries():
            raise UserError(
                f"training, validation and test of {self.called} are divided elsewhere than when the checkpoint was "
                f"written. {back}"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint; if the text is only evaluated, convert it to the symbol ids of the checkpoint.

        Raises:
            UserError: training would continue with another text, or the text has symbols that the checkpoint lacks.
        """
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.check_goes_on(state_dict)
        else:
            self._evaluated = True
            self._take_ids(state_dict)
        super().load_state_dict(state_dict)

    def _take_ids(self, state_dict: dict[str, Any]) -> None:
        known = Vocabulary(state_dict["level"], tuple(state_dict["vocabulary"]))
        if self.max_words is not None and known != self.corpus.vocabulary:
            # The text's own most frequent words differ from the checkpoint's, so all words must be decoded.
            self.max_words, self._corpus = None, None
        ids, own = self.corpus.ids, self.corpus.vocabulary
        as_long = state_dict.get("symbols") in (None, len(ids))
        self.changed = not as_long or state_dict.get("crc32", self.corpus.crc32) != self.corpus.crc32
        if known != own:
            small = own.places_in(known).astype(
                np.min_scalar_type(len(known) - 1)
            )  # narrow before indexing by the text
            self._corpus = Corpus(small[ids], known)

    def _training_batches(self, first: int) -> Iterator[Batch]:
        ids, streams = np.asarray(self.corpus.ids), self.streams
        windows = self.stream_length // self.window
        everything = torch.ones(len(self.rows), self.window, dtype=torch.bool)
        steps = np.arange(self.window + 1)
        starts: NDArray[np.int64] | None = None
        for batch in itertools.count(first):
            turn, place = divmod(batch, windows)
            if place == 0 or starts is None:
                starts = np.array([streams.start(turn * self.batch_size + row) for row in self.rows])
            symbols = ids[starts[:, None] + place * self.window + steps].astype(np.int64)
            inputs, targets = torch.from_numpy(symbols[:, :-1].copy()), torch.from_numpy(symbols[:, 1:].copy())
            reset = torch.full((len(starts),), place == 0)
            yield Batch(inputs, targets, everything, everything, reset)

    def _evaluation_batches(self, part: range) -> Iterator[Batch]:
        """Yield the streams of a split, ``batch_size`` at a time; the last batches may have fewer rows."""
        ids = np.asarray(self.corpus.ids)
        predictions = len(part) - 1
        steps = np.arange(self.window)
        length = self.evaluation_stream_length
        for first in range(0, predictions, self.batch_size * length):
            starts = first + np.array(self.rows) * length
            starts = starts[starts < predictions]
            # The first stream of a group is the longest, and a multiple of the window unless the split ends.
            longest = min(length, predictions - starts[0]) if len(starts) else 0
            for offset in range(0, longest, self.window):
                places = starts[:, None] + offset + steps
                valid = places < predictions
                places = np.where(valid, part.start + places, part.start)
                inputs = np.where(valid, ids[places], 0).astype(np.int64)
                targets = np.where(valid, ids[places + 1], 0).astype(np.int64)
                mask = torch.from_numpy(valid)
                reset = torch.full((len(starts),), offset == 0)
                yield Batch(torch.from_numpy(inputs), torch.from_numpy(targets), mask, mask, reset)


class _Batches(IterableDataset[Batch]):
    """Iterable data set that calls a function again for every iterator."""

    def __init__(self, batches: Callable[[], Iterator[Batch]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()


def _loader(batches: Callable[[], Iterator[Batch]]) -> DataLoader[Batch]:
    return DataLoader(_Batches(batches), batch_size=None)
