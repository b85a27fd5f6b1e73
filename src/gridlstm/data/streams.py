"""Positions of the splits and the training streams of a text."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gridlstm.errors import UserError

PARTS = ("train", "validation", "test")
"""Names of the parts that a text may come in, in order."""

SHARES = (0.9, 0.05, 0.05)
"""Default shares of training, validation and test, as in the usual split of enwik8."""


class Streams:
    """Start of each training stream as a pure function of its number.

    Every epoch has the same number of streams, for any offset.

    Args:
        part: position of the training split in the text.
        stream_length: symbols of a stream; it reads one more, the last target.
        window: symbols of a window; used only for the advice in the error.
        seed: seed of the offsets and orders.

    Raises:
        UserError: the split is too short for one stream.
    """

    def __init__(self, part: range, stream_length: int, window: int, seed: int) -> None:
        if len(part) <= stream_length:
            fitting = min(window, len(part) - 1)
            advice = "Use a longer text"
            if fitting > 0:
                longest = (len(part) - 1) // fitting * fitting
                advice += f", or stream_length={longest} window={fitting}"
            raise UserError(
                f"the training split has {len(part):,} symbols, and one stream needs {stream_length + 1:,}. {advice}."
            )
        self.part = part
        self.stream_length = stream_length
        self.seed = seed
        # One stream fewer if there are several, so that the offset may be anything below stream_length.
        self.per_epoch = max(1, len(part) // stream_length - 1)
        self.offsets = min(stream_length, len(part) - self.per_epoch * stream_length)

    def start(self, number: int) -> int:
        """Return the position in the text of the first symbol of stream ``number`` (0, 1, ... without end)."""
        epoch, place = divmod(number, self.per_epoch)
        offset, order = _epoch(self.seed, epoch, self.per_epoch, self.offsets)
        return self.part.start + offset + int(order[place]) * self.stream_length


@lru_cache(maxsize=2)  # a batch may span two epochs
def _epoch(seed: int, epoch: int, streams: int, offsets: int) -> tuple[int, NDArray[np.int64]]:
    """Return the offset of an epoch's first stream and the order of its streams."""
    random = np.random.default_rng((seed, epoch))
    return int(random.integers(offsets)), random.permutation(streams)


def split_text(
    length: int, splits: Sequence[float], needed: Collection[str] = ("validation", "test")
) -> tuple[range, range, range]:
    """Return the positions of the training, validation and test split in a text of ``length`` symbols, in order.

    Args:
        length: symbols of the text.
        splits: three fractions that sum to 1, or three numbers of symbols that sum to at most ``length``.
        needed: names of the splits besides training that are read.

    Raises:
        UserError: ``splits`` is neither of these, or a needed split has fewer than the two symbols of a prediction.
    """
    given = f"splits={list(splits)}"
    if len(splits) != 3 or any(type(split) not in (int, float) or split < 0 for split in splits):
        raise UserError(f"{given}: expected three fractions that sum to 1, or three numbers of symbols.")
    if all(isinstance(split, int) for split in splits):
        ends = [int(end) for end in itertools.accumulate(splits)]
        if ends[-1] == 100 < length:
            raise UserError(
                f"{given} are numbers of symbols, 100 of {length:,}. For shares use "
                f"[{','.join(str(split / 100) for split in splits)}]."
            )
        if ends[-1] > length:
            raise UserError(
                f"{given} takes {ends[-1]:,} symbols, but the text has {length:,}. Use smaller numbers, or fractions "
                f"such as [0.9,0.05,0.05]."
            )
    else:
        if not math.isclose(sum(splits), 1, abs_tol=1e-6):  # decimal fractions sum to 1 up to rounding
            raise UserError(f"{given} sums to {sum(splits)}. Fractions must sum to 1, such as [0.9,0.05,0.05].")
        ends = [*(min(length, round(end * length)) for end in itertools.accumulate(splits[:2])), length]
    train, val, test = (range(begin, end) for begin, end in itertools.pairwise([0, *ends]))
    for name, part in (("validation", val), ("test", test)):
        if name in needed and len(part) < 2:
            raise UserError(
                f"{given} leaves {len(part)} of {length:,} symbols for {name}, which needs at least 2. Give it "
                f"more, or use a longer text."
            )
    return train, val, test


def split_parts(lengths: Mapping[str, int], splits: Sequence[float]) -> tuple[range, range, range]:
    """Return the positions of the splits in a text that comes in parts, in order.

    Args:
        lengths: symbols of train, and of validation and test if they are parts, in this order.
        splits: see ``split_text``; the share of a missing part is cut from the end of train.

    Raises:
        UserError: a part or a cut split has fewer than two symbols.
    """
    if any(length < 2 for length in lengths.values()):
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"the parts of the text have too few symbols: {told}. Each needs at least 2.")
    if set(lengths) == {"train"}:
        return split_text(lengths["train"], splits)
    spans = itertools.pairwise(itertools.accumulate(lengths.values(), initial=0))
    own = {name: range(*span) for name, span in zip(lengths, spans, strict=True)}
    for n, name in enumerate(PARTS):
        if name not in own:
            cut = split_text(lengths["train"], splits, needed=[name])
            shares = isinstance(splits[0], float)
            begin = lengths["train"] - len(cut[n]) if shares else cut[0].stop
            own["train"], own[name] = range(begin), range(begin, begin + len(cut[n]))
    train, validation, test = (own[name] for name in PARTS)
    return train, validation, test
