"""Counter-based random numbers: a pure function of (key, sample index, position), without state to carry or restore.

A sample depends only on its global index, so any number of ranks and workers, a CPU or a GPU, and a resumed run see the
same samples. The mixing function is splitmix64 (Steele, Lea, Flood 2014).
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_ALL = 2**64 - 1


def _signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned word; torch multiplies int64 modulo 2^64 like uint64."""
    word &= _ALL
    return word - 2**64 if word >= 2**63 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's own shift is arithmetic."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ _shift_right(x, 31)


def _mix_word(word: int) -> int:
    """Compute ``_mix`` of one unsigned number."""
    for shift, factor in zip((30, 27), _MULTIPLIERS, strict=True):
        word &= _ALL
        word = (word ^ (word >> shift)) * factor
    word &= _ALL
    return word ^ (word >> 31)


def random_words(key: tuple[int, ...], index: Tensor, positions: int) -> Tensor:
    """Return 63 random bits for each position of each sample.

    Args:
        key: other integers that the numbers depend on, such as (seed, split).
        index: (B,) int64 global sample indices.
        positions: numbers drawn for each sample.

    Returns:
        (B, positions) int64 in [0, 2^63), on the device of ``index``.
    """
    word = 0  # the key is mixed in Python, which costs a GPU nothing
    for part in key:
        word = _mix_word(word ^ (part * _GOLDEN + 1))
    rows = _mix(index * _signed(_GOLDEN) + _signed(word))
    columns = torch.arange(1, positions + 1, device=index.device) * _signed(_GOLDEN)
    return _shift_right(_mix(rows[:, None] + columns), 1)


def random_integers(key: tuple[int, ...], index: Tensor, positions: int, below: int) -> Tensor:
    """Return (B, positions) int64 uniform in [0, below); the bias of the modulo is under below / 2^63."""
    return random_words(key, index, positions) % below
