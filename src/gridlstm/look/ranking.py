"""Correlation of memory cells with labels, found on one half of a text and reported on the other.

Shape legend: N characters, L layers, d hidden size, C cells, K labels.
"""

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
BEST = 20
"""Cells kept of each label."""


class Ranked(NamedTuple):
    """A cell that follows a label."""

    label: str
    dimension: str
    layer: int
    """from 0"""
    unit: int
    chosen: float
    """correlation on the first half, by which it was chosen"""
    held_out: float
    """on the second half"""


def correlations(values: Array, labels: Array) -> Array:
    """Pearson's r (C, K) of every column of values (N, C) with every column of labels (N, K); 0 for a constant."""

    def standardised(x: Array) -> Array:
        centred = x - x.mean(0)
        norm = np.sqrt((centred**2).sum(0))
        return centred / np.where(norm > 1e-9 * np.sqrt(len(x)), norm, np.inf)

    result: Array = standardised(values).T @ standardised(labels)
    return result


def rank(memories: dict[str, Array], known: dict[str, Array]) -> list[Ranked]:
    """The cells that follow each label best.

    Each label's are chosen by |r| on the first half of the text, and stand in that order; what counts is r on the
    second. To order by the second would be to choose once more, by what is to judge the choice.
    A label that does not vary in both halves is left out, with a line in the log.

    Args:
        memories: by dimension, (N, L, d).
        known: labels, (N,) each.
    """
    names = [
        (dimension, layer, unit)
        for dimension, m in memories.items()
        for layer in range(m.shape[1])
        for unit in range(m.shape[2])
    ]
    values = np.concatenate([m.reshape(len(m), -1) for m in memories.values()], axis=1)
    half = len(values) // 2
    ranked = []
    for label, column in known.items():
        if np.ptp(column[:half]) == 0 or np.ptp(column[half:]) == 0:
            log.info("%s: does not vary in both halves of this text, so no cell is ranked by it", label)
            continue
        first = correlations(values[:half], column[:half, None])[:, 0]
        best = np.argsort(-abs(first))[:BEST]
        second = correlations(values[half:, best], column[half:, None])[:, 0]
        for cell, r in zip(best.tolist(), second.tolist(), strict=True):
            dimension, layer, unit = names[cell]
            ranked.append(Ranked(label, dimension, layer, unit, float(first[cell]), r))
    return ranked


def survival(entering: Array, leaving: Array) -> Array:
    """(L, d): r, over the text, of what leaves layer l (N, L, d) with what entered at the bottom (N, d), by unit."""
    d = entering.shape[1]
    by_layer = [
        correlations(leaving[:, layer], entering)[np.arange(d), np.arange(d)] for layer in range(leaving.shape[1])
    ]
    return np.stack(by_layer)
