"""Correlation of memory cells with labels, found on one half of a text and reported on the other.

Shape legend: N characters, L layers, d hidden size, C cells, K labels.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Array = NDArray[np.floating[Any]]
BEST = 20
"""Cells kept per label."""


class Ranked(NamedTuple):
    """A cell that follows a label."""

    label: str
    dimension: str
    layer: int
    """from 0"""
    unit: int
    chosen: float
    """correlation on the first half, used to choose the cell"""
    held_out: float
    """correlation on the second half"""


def correlations(values: Array, labels: Array) -> Array:
    """Return Pearson's r (C, K) of every column of values (N, C) and every column of labels (N, K); 0 for constants."""

    def standardized(x: Array) -> Array:
        centred = x - x.mean(0)
        norm = np.sqrt((centred**2).sum(0))
        return centred / np.where(norm > 1e-9 * np.sqrt(len(x)), norm, np.inf)

    result: Array = standardized(values).T @ standardized(labels)
    return result


def rank(memories: dict[str, Array], known: Mapping[str, Array]) -> list[Ranked]:
    """Return the cells that follow each label best.

    Cells are chosen and ordered by |r| on the first half of the text; the result is r on the second half. Ordering by
    the second half would select cells by the data that evaluates the selection. A label that does not vary in both
    halves is skipped and logged.

    Args:
        memories: by dimension, (N, L, d).
        known: labels, (N,) each.
    """
    half = len(next(iter(known.values()))) // 2
    varying = []
    for label, column in known.items():
        if np.ptp(column[:half]) == 0 or np.ptp(column[half:]) == 0:
            log.info("%s: skipped, because it does not vary in both halves of this text", label)
        else:
            varying.append(label)
    if not varying:
        return []
    columns = np.stack([known[label] for label in varying], axis=1)  # (N, K)
    # Layer by layer: double-precision copies of all cells of a large network would not fit in memory.
    cells, by_layer = [], []
    for dimension, m in memories.items():
        for layer in range(m.shape[1]):
            cells += [(dimension, layer, unit) for unit in range(m.shape[2])]
            by_layer.append(correlations(m[:half, layer].astype(np.float64), columns[:half]))
    first = np.concatenate(by_layer)  # (C, K)
    ranked = []
    for k, label in enumerate(varying):
        for best in np.argsort(-abs(first[:, k]))[:BEST].tolist():
            dimension, layer, unit = cells[best]
            own = memories[dimension][half:, layer, unit].astype(np.float64)
            held_out = correlations(own[:, None], columns[half:, [k]]).item()
            ranked.append(Ranked(label, dimension, layer, unit, float(first[best, k]), held_out))
    return ranked


def survival(entering: Array, leaving: Array) -> Array:
    """Return (L, d) correlations over the text, by unit, of each layer's output (N, L, d) with the input (N, d)."""
    d = entering.shape[1]
    by_layer = [
        correlations(leaving[:, layer], entering)[np.arange(d), np.arange(d)] for layer in range(leaving.shape[1])
    ]
    return np.stack(by_layer)
