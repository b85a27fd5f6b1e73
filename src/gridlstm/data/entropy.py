"""Entropy of a text under its own symbol counts, a yardstick for models of the text."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 24
"""Symbols counted at a time."""


class NgramEntropy(NamedTuple):
    """Entropies in bits per symbol."""

    unigram: float
    """H(X_t)."""
    bigram: float
    """H(X_t | X_{t-1})."""
    symbols: int
    """Number of distinct symbols."""
    pairs: int
    """Number of distinct pairs."""


def ngram_entropy(ids: NDArray[Any], vocabulary_size: int) -> NgramEntropy:
    """Compute the entropies of a text under its own symbol and pair counts, which no model of that order can beat.

    Args:
        ids: (length,) integers below ``vocabulary_size``, at least two of them.
        vocabulary_size: number of symbols. The counts need 8 * vocabulary_size**2 bytes.
    """
    symbols = np.zeros(vocabulary_size, dtype=np.int64)
    pairs = np.zeros(vocabulary_size**2, dtype=np.int64)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK + 1].astype(np.int64)
        symbols += np.bincount(part[:CHUNK], minlength=vocabulary_size)
        pairs += np.bincount(part[:-1] * vocabulary_size + part[1:], minlength=vocabulary_size**2)
    contexts = pairs.reshape(vocabulary_size, vocabulary_size).sum(axis=1)
    different = (int(np.count_nonzero(counts)) for counts in (symbols, pairs))
    return NgramEntropy(_entropy(symbols), _entropy(pairs) - _entropy(contexts), *different)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy in bits of the distribution proportional to the counts."""
    p = counts[counts > 0] / counts.sum()
    return float((p * np.log2(1 / p)).sum())
