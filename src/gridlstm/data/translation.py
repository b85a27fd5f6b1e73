"""Pairs of sentences for translation, in batches of similar lengths.

Shape legend: B batch rows, S symbols of the longest source, T symbols of the longest target.
"""

import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gridlstm.data.base import PairBatch, Split, owned_rows
from gridlstm.data.map_style import MapData
from gridlstm.data.pairs import Pair, PairSource, Sentences
from gridlstm.data.spec import PairSpec
from gridlstm.data.words import BOS, EOS, PAD, Level, SentenceVocabulary, vocabulary_from
from gridlstm.errors import UserError

log = logging.getLogger(__name__)

CHUNK, STRIPE = 100, 8
"""Batches whose pairs are sorted by source length together, and those of them that are sorted by target length.

Enough for little padding, but few enough to mix well. A Reencoder computes every pair of a source and a target place:
padding adds 19 % to them on Multi30k in batches of 64, and 36 % if 50 batches are sorted by target length alone.
"""
EXPECTED_LENGTH = 20
"""Symbols of a sentence, assumed before sentences are read."""
TIMES_LONGER = 10
"""Largest ratio of the symbols of an evaluation sentence to ``max_length``.

The cost of a pair grows with the product of its lengths, so a document on one line would end an evaluation after the
training, for lack of memory or after hours.
"""

_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}


class EncodedPair(NamedTuple):
    """Symbol ids of a pair, without begin and end."""

    source: list[int]
    target: list[int]


class TranslationData(MapData):
    """Sentences and their translations, as symbols of two vocabularies that are learned from the training pairs.

    A source is read to its end: its symbols, then </s>. A target is predicted from <s> to </s>::

        source   Ein Hund bellt . </s>            source_mask  1 1 1 1 1
        inputs   <s> A   dog barks .              loss_mask    1 1 1 1 1
        targets  A   dog barks . </s>

    Shorter rows are padded on the right, where the masks are false.

    Training: the order of ``MapData``, in batches of similar lengths. The shuffled pairs of an epoch are sorted by
    source length within chunks of 100 batches, then by target length within 8 batches, and the batches are shuffled.
    Every batch has ``batch_size`` pairs and is a function of (seed, its number); every epoch has every pair once. Pairs
    with an empty side, and those with more than ``max_length`` symbols on a side, are left out.

    Evaluation: every source with each of its references, in batches of similar lengths. No evaluation sentence is ever
    left out or cut, because that would change the test set. One of more than 10 ``max_length`` symbols is refused.

    Args:
        source: the sentences; see ``PairSource``.
        batch_size, seed: see ``SequenceData``; rows are pairs.
        source_level, target_level: units of the two languages, with the options for learning their vocabularies.
        max_length: limit on the symbols of either side of a training pair, not counting <s> and </s>.
        cache_dir: directory of learned vocabularies; None for ``$XDG_CACHE_HOME/gridlstm`` or ``~/.cache/gridlstm``.

    Raises:
        ValueError: ``max_length`` is below 1.
        UserError: from ``setup``, if the sentences cannot be read, a split has no pair with text on both sides or no
            training pair is left, or an evaluation sentence is too long.
    """

    def __init__(
        self,
        source: PairSource,
        batch_size: int,
        seed: int,
        source_level: Level,
        target_level: Level,
        max_length: int = 100,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size, seed)
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}.")
        self.source = source
        self.source_level = source_level
        self.target_level = target_level
        self.max_length = max_length
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._sentences: dict[Split, Sentences] | None = None
        self._vocabularies: tuple[SentenceVocabulary, SentenceVocabulary] | None = None
        self._encoded: dict[Split, list[EncodedPair]] = {}
        self._checksums: dict[Split, int] = {}

    @property
    def expected_spec(self) -> PairSpec:
        sizes = self.source_level.expected_size, self.target_level.expected_size
        return PairSpec(*sizes, EXPECTED_LENGTH, EXPECTED_LENGTH)

    @cached_property
    def spec(self) -> PairSpec:
        pairs = self._pairs("train")
        source, target = (math.ceil(1 + sum(map(len, side)) / len(pairs)) for side in zip(*pairs, strict=True))
        return PairSpec(len(self.source_vocabulary), len(self.target_vocabulary), source, target)

    @property
    def called(self) -> str:
        return self.source.name

    @property
    def source_vocabulary(self) -> SentenceVocabulary:
        """Symbols of the sources, learned on first use or taken from a checkpoint."""
        return self._both()[0]

    @property
    def target_vocabulary(self) -> SentenceVocabulary:
        """Symbols of the targets, learned on first use or taken from a checkpoint."""
        return self._both()[1]

    def sources(self, split: Literal["val", "test"]) -> list[str]:
        """Return the source sentences of a split as text, in the same order as ``references``."""
        return self._read()[split].sources

    def references(self, split: Literal["val", "test"]) -> list[list[str]]:
        """Return all translations, as text, of each sentence that ``sources`` returns."""
        return self._read()[split].references

    def test_on_all(self) -> None:
        raise ValueError(f"{self.called} has a test of its own")

    def check(self) -> None:
        self.source.check()

    def check_processes(self, number: int) -> None:
        super().check_processes(number)
        for split in ("val", "test"):
            owned_rows(len(self._read()[split].sources), 0, number, f"the number of {_NAMES[split]} sentences")

    def prepare_data(self) -> None:
        self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        if "train" in self._encoded:
            return
        sizes = [f"{len(self._pairs(split)):,}" for split in ("train", "val", "test")]
        log.info(
            "%s: %s pairs for training, validation and test; %s source and %s target symbols",
            self.called,
            " + ".join(sizes),
            f"{len(self.source_vocabulary):,}",
            f"{len(self.target_vocabulary):,}",
        )

    @property
    def batches_per_epoch(self) -> int:
        return max(1, round(len(self._pairs("train")) / self.batch_size))

    def dataset(self, split: Split) -> Dataset[EncodedPair]:
        """Return the pairs of a split; those for evaluation are sorted by length."""
        pairs = self._pairs(split)
        return _Pairs(pairs if split == "train" else [pairs[place] for place in _by_length(_lengths(pairs))])

    def order(self, epoch: int, samples: int) -> NDArray[np.int64]:
        return bucketed(_lengths(self._pairs("train")), self.batch_size, self.seed, epoch)

    def arranged(self, batches: list[list[int]]) -> list[list[int]]:
        """Return the batches in mixed order, so that the first ones are not those of the shortest sentences."""
        return [batches[place] for place in np.random.default_rng(0).permutation(len(batches))]

    def collate(self, samples: list[EncodedPair]) -> PairBatch:
        """Return a batch of pairs, padded on the right to the longest of each side."""
        source, source_mask = _padded([[*pair.source, EOS] for pair in samples])
        inputs, _ = _padded([[BOS, *pair.target] for pair in samples])
        targets, loss_mask = _padded([[*pair.target, EOS] for pair in samples])
        return PairBatch(source, source_mask, inputs, targets, loss_mask)

    def state_dict(self) -> dict[str, Any]:
        own = {
            "source_vocabulary": self.source_vocabulary.state(),
            "target_vocabulary": self.target_vocabulary.state(),
            "crc32": self._crc32("train"),
            "val_crc32": self._crc32("val"),
            "test_crc32": self._crc32("test"),
        }
        return super().state_dict() | own

    def check_goes_on(self, state_dict: dict[str, Any]) -> None:
        known = state_dict["source_vocabulary"], state_dict["target_vocabulary"]
        own = self.source_vocabulary.state(), self.target_vocabulary.state()
        if state_dict["crc32"] != self._crc32("train") or known != own:
            what = "pairs" if state_dict["crc32"] != self._crc32("train") else "vocabularies"
            raise UserError(
                f"the {what} of {self.called} are not those that the checkpoint was trained on. Resuming needs the "
                f"same {what}. Restore them, or start a new run."
            )
        if self._other("val", state_dict):
            raise UserError(
                f"the validation sentences of {self.called} are not those that the run had when the checkpoint was "
                f"written, so scores before and after cannot be compared. Restore the original files, or start a new "
                f"run from its weights: init_from=…."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint; if the network is only evaluated, take the vocabularies of the checkpoint.

        Raises:
            UserError: training would continue with other pairs or vocabularies.
        """
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.check_goes_on(state_dict)
        else:
            self._vocabularies = (
                vocabulary_from(state_dict["source_vocabulary"]),
                vocabulary_from(state_dict["target_vocabulary"]),
            )
            self._encoded = {}
            self.__dict__.pop("spec", None)
            self.changed = (
                state_dict["crc32"] != self._crc32("train")
                or self._other("val", state_dict)
                or self._other("test", state_dict)
            )
        super().load_state_dict(state_dict)

    def _read(self) -> dict[Split, Sentences]:
        """Read the sentences, once; leave out training pairs with an empty side."""
        if self._sentences is None:
            sentences = dict(self.source.read())
            with_text = {split: _with_text(sentences[split].pairs()) for split in _NAMES}
            for split, pairs in with_text.items():
                if not pairs:
                    raise UserError(
                        f"no {_NAMES[split]} pair of {self.called} has text on both sides. Expected one or more. Add "
                        f"pairs."
                    )
            kept = with_text["train"]
            if left_out := len(sentences["train"].pairs()) - len(kept):
                log.info("%s training pairs with an empty side are left out", f"{left_out:,}")
            self._warn_of_equal(with_text)
            sentences["train"] = Sentences.one_each(kept)
            self._sentences = sentences
        return self._sentences

    def _warn_of_equal(self, pairs: Mapping[Split, Sequence[Pair]]) -> None:
        """Warn if both sides have the same texts, or if most pairs of an evaluation are training pairs."""
        if all(source == target for source, target in pairs["train"]):
            log.warning("%s: every training sentence equals its translation", self.called)
        known = set(pairs["train"])
        for split in ("val", "test"):
            if (seen := sum(pair in known for pair in pairs[split])) > len(pairs[split]) / 2:
                log.warning(
                    "%s: %s of %s %s pairs are also training pairs, so their scores say little about new sentences",
                    self.called,
                    f"{seen:,}",
                    f"{len(pairs[split]):,}",
                    _NAMES[split],
                )

    def _both(self) -> tuple[SentenceVocabulary, SentenceVocabulary]:
        if self._vocabularies is None:
            sources, targets = zip(*self._read()["train"].pairs(), strict=True)
            self._vocabularies = (
                self._learned("source_level", sources),
                self._learned("target_level", targets),
            )
        return self._vocabularies

    def _learned(self, option: Literal["source_level", "target_level"], sentences: Sequence[str]) -> SentenceVocabulary:
        level: Level = getattr(self, option)
        try:
            return level.learn(sentences, self.cache_dir)
        except UserError as error:
            raise UserError(f"{option}: {error}") from error  # both levels may have the same options

    def _pairs(self, split: Split) -> list[EncodedPair]:
        """Return the encoded pairs of a split; leave out training pairs that are too long."""
        if split not in self._encoded:
            pairs = self._encode(self._read()[split].pairs())
            if split == "train":
                pairs = self._short_enough(pairs)
            elif (longest := max(max(map(len, pair)) for pair in pairs)) > (most := TIMES_LONGER * self.max_length):
                raise UserError(
                    f"a {_NAMES[split]} sentence of {self.called} has {longest:,} symbols. Expected at most {most:,}, "
                    f"{TIMES_LONGER} times max_length. Divide its line into sentences, or use a larger max_length."
                )
            self._encoded[split] = pairs
        return self._encoded[split]

    def _encode(self, pairs: Sequence[Pair]) -> list[EncodedPair]:
        source, target = self._both()
        return [EncodedPair(source.encode(one), target.encode(other)) for one, other in pairs]

    def _short_enough(self, pairs: list[EncodedPair]) -> list[EncodedPair]:
        kept = [pair for pair in pairs if max(map(len, pair)) <= self.max_length]
        if not kept:
            shortest = min(max(map(len, pair)) for pair in pairs)
            raise UserError(
                f"max_length={self.max_length} leaves no training pair of {self.called}, whose shortest has {shortest} "
                f"symbols. Use a larger number."
            )
        if len(kept) < len(pairs):
            left_out = f"{len(pairs) - len(kept):,}"
            log.info("%s training pairs with over %d symbols on a side are left out", left_out, self.max_length)
        return kept

    def _crc32(self, split: Split) -> int:
        """Return a checksum of all pairs of a split, which tells whether a checkpoint had others."""
        if split not in self._checksums:  # every checkpoint asks for it
            text = "\n".join(side for pair in self._read()[split].pairs() for side in pair)
            self._checksums[split] = zlib.crc32(text.encode())
        return self._checksums[split]

    def _other(self, split: Literal["val", "test"], state_dict: dict[str, Any]) -> bool:
        """Return True if the pairs of this split differ; older checkpoints do not have their checksum."""
        own = self._crc32(split)
        return bool(state_dict.get(f"{split}_crc32", own) != own)


def bucketed(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's pairs in which every whole batch has pairs of similar lengths.

    Epochs follow one another without a gap. So the first pairs of an epoch complete the last batch of the epoch before,
    and the last pairs begin a batch that the next epoch completes. These first and last pairs may have any lengths.

    Args:
        lengths: (pairs, 2) symbols of source and target of each pair.
        batch_size: pairs of a batch.
        seed, epoch: numbers that determine the order.
    """
    draw = np.random.default_rng((seed, epoch))
    shuffled = draw.permutation(len(lengths))
    begin = min(-epoch * len(lengths) % batch_size, len(lengths))
    end = begin + (len(lengths) - begin) // batch_size * batch_size
    size = CHUNK * batch_size
    chunks = [shuffled[first : min(first + size, end)] for first in range(begin, end, size)]
    ordered = [stripe for chunk in chunks for stripe in _stripes(chunk, lengths, STRIPE * batch_size)]
    batches = np.concatenate([np.zeros(0, np.int64), *ordered]).reshape(-1, batch_size)
    return np.concatenate([shuffled[:begin], draw.permutation(batches).ravel(), shuffled[end:]])


def _stripes(places: NDArray[np.int64], lengths: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Return places of pairs, sorted by source length, in stripes of ``size`` that are sorted by target length."""
    by_source = places[np.argsort(lengths[places, 0], kind="stable")]
    stripes = np.split(by_source, range(size, len(by_source), size))
    return [stripe[_by_length(lengths[stripe])] for stripe in stripes]


class _Pairs(Dataset[EncodedPair]):
    """List of pairs."""

    def __init__(self, pairs: list[EncodedPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> EncodedPair:
        return self.pairs[index]


def _with_text(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with text on both sides."""
    return [pair for pair in pairs if all(side.strip() for side in pair)]


def _lengths(pairs: list[EncodedPair]) -> NDArray[np.int64]:
    return np.array([(len(pair.source), len(pair.target)) for pair in pairs]).reshape(-1, 2)


def _by_length(lengths: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the places of pairs in ascending order of (target length, source length); equal ones keep their order."""
    return np.lexsort((lengths[:, 0], lengths[:, 1]))


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return rows of ids, (B, longest), padded on the right, and a mask that is false on the padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
