"""Where the splits and the training streams of a text lie."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gridlstm.errors import UserError

PARTS = ("train", "validation", "test")
"""Names of the parts that a text may come in, in their order."""

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
                advice += f", or give stream_length={longest} window={fitting}"
            raise UserError(
                f"the training split has {len(part):,} symbols, and one stream needs {stream_length + 1:,}. {advice}."
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
    """Return where training, validation and test split lie in a text of ``length`` symbols, one after the other.

    Args:
        splits: three fractions that sum to 1, or three numbers of symbols that sum to at most ``length``.
        needed: those of validation and test that are read.

    Raises:
        UserError: they are neither, or one that is needed has fewer than the two symbols that a prediction takes.
    """
    given = f"splits={list(splits)}"
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


def split_parts(lengths: Mapping[str, int], splits: Sequence[float]) -> tuple[range, range, range]:
    """Return where the splits lie in a text that comes with some of them as parts, one after the other.

    Args:
        lengths: symbols of train, and of validation and test where they are parts, in this order.
        splits: see ``split_text``; the share of what is no part is cut from the end of train.

    Raises:
        UserError: a part has fewer than two symbols, or what is cut would have.
    """
    if any(length < 2 for length in lengths.values()):
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"the text's parts have these numbers of symbols: {told}. Each needs at least 2.")
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
