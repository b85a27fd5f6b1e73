"""Where the splits and the training streams of a text lie."""

import itertools
import math
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gridlstm.errors import UserError

SHARES = (0.9, 0.05, 0.05)
"""Of training, validation and test where nothing else is said, as of the usual splits of enwik8."""


class Streams:
    """Where each training stream begins, as a pure function of its number.

    An epoch holds the same number of streams at whatever offset it is cut.

    Args:
        part: where the training split lies in the text.
        stream_length: symbols of a stream; it reads one more, the last target.
        window: named in the error alone.
        seed: of the offsets and orders.

    Raises:
        UserError: the split is too short for one stream.
    """

    def __init__(self, part: range, stream_length: int, window: int, seed: int) -> None:
        if len(part) <= stream_length:
            fitting = min(window, len(part) - 1)
            advice = "Take a longer text"
            if fitting > 0:
                longest = (len(part) - 1) // fitting * fitting
                advice += f", or set task.data.stream_length={longest} task.data.window={fitting}"
            raise UserError(
                f"the training split has {len(part):,} symbols; one stream needs task.data.stream_length + 1 = "
                f"{stream_length + 1:,}. {advice}."
            )
        self.part = part
        self.stream_length = stream_length
        self.seed = seed
        # A last stream less where there are several: then the offset may be anything below stream_length.
        self.per_epoch = max(1, len(part) // stream_length - 1)
        self.offsets = min(stream_length, len(part) - self.per_epoch * stream_length)

    def start(self, number: int) -> int:
        """The place in the text of the first symbol of stream ``number`` (0, 1, ... without end)."""
        epoch, place = divmod(number, self.per_epoch)
        offset, order = _epoch(self.seed, epoch, self.per_epoch, self.offsets)
        return self.part.start + offset + int(order[place]) * self.stream_length


@lru_cache(maxsize=2)  # a batch may lie in two epochs
def _epoch(seed: int, epoch: int, streams: int, offsets: int) -> tuple[int, NDArray[np.int64]]:
    """The offset of an epoch's cut and the order of its streams."""
    random = np.random.default_rng((seed, epoch))
    return int(random.integers(offsets)), random.permutation(streams)


def split_text(
    length: int, splits: Sequence[float], needed: Collection[str] = ("validation", "test")
) -> tuple[range, range, range]:
    """Where training, validation and test split lie in a text of ``length`` symbols, one after the other.

    Args:
        splits: three fractions that sum to 1, or three numbers of symbols that sum to at most ``length``.
        needed: those of validation and test that are read.

    Raises:
        UserError: they are neither, or one that is needed has fewer than the two symbols that a prediction takes.
    """
    given = f"task.data.splits={list(splits)}"
    if len(splits) != 3 or any(type(split) not in (int, float) or split < 0 for split in splits):
        raise UserError(f"{given}: expected three fractions that sum to 1, or three numbers of symbols.")
    if all(isinstance(split, int) for split in splits):
        ends = [int(end) for end in itertools.accumulate(splits)]
        if ends[-1] == 100 < length:
            raise UserError(
                f"{given} are numbers of symbols, 100 of {length:,}; for shares of it give "
                f"[{','.join(str(split / 100) for split in splits)}]."
            )
        if ends[-1] > length:
            raise UserError(
                f"{given} takes {ends[-1]:,} symbols, the text has {length:,}: lower them, or give fractions such as "
                f"[0.9,0.05,0.05]."
            )
    else:
        if not math.isclose(sum(splits), 1, abs_tol=1e-6):  # what is written in decimals sums to 1 but for rounding
            raise UserError(f"{given} sums to {sum(splits)}: fractions must sum to 1, such as [0.9,0.05,0.05].")
        ends = [*(min(length, round(end * length)) for end in itertools.accumulate(splits[:2])), length]
    train, val, test = (range(begin, end) for begin, end in itertools.pairwise([0, *ends]))
    for name, part in (("validation", val), ("test", test)):
        if name in needed and len(part) < 2:
            raise UserError(
                f"{given} leaves {len(part)} of {length:,} symbols for {name}, which needs at least 2: give it "
                f"more, or take a longer text."
            )
    return train, val, test
