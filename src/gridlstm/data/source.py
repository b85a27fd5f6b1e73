"""The base of all sources of a text."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from gridlstm.data.vocabulary import Level

SYMBOLS = 205
"""Distinct symbols of enwik8, assumed of a text that has not been read."""


class FoundText(NamedTuple):
    """A text on the disk."""

    file: Path
    """Plain or packed: see ``read_corpus``."""
    parts: Mapping[Level, Mapping[str, int]] | None = None
    """Symbols of train, and of validation and test where the text comes with them; None of a text in one piece."""


class TextSource:
    """A text: what it is called, where it is and into which parts it is usually divided.

    A source reads nothing when it is made. Subclasses give ``name`` and implement ``find``.
    """

    name: str
    """What messages call the text."""

    named_splits: ClassVar[Mapping[str, tuple[int, int, int]]] = {}
    """Symbols of training, validation and test, by the name of the division."""

    symbols: ClassVar[int] = SYMBOLS
    """Distinct symbols, as expected before the text is read."""

    def check(self) -> None:
        """Raise UserError where the text cannot be had, as far as that shows without reading or downloading."""

    def find(self, cache_dir: Path | None, evaluated: bool = False) -> FoundText:
        """Return the text; download, unpack or join it where need be.

        Args:
            cache_dir: see ``read_corpus``.
            evaluated: a trained network is only measured on it, so that any text may stand in for a particular one.

        Raises:
            UserError: the text cannot be had.
        """
        raise NotImplementedError(f"{type(self).__name__} must define find")
