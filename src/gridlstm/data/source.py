"""Base class of all sources of a text."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from gridlstm.data.vocabulary import Level

SYMBOLS = 205
"""Distinct symbols of enwik8, assumed for a text that has not been read."""


class FoundText(NamedTuple):
    """Text on disk."""

    file: Path
    """Plain or packed file: see ``read_corpus``."""
    parts: Mapping[Level, Mapping[str, int]] | None = None
    """Symbols of train, and of validation and test if the text has them; None if the text is in one piece."""


class TextSource:
    """Text with its name, its location and its usual divisions.

    A source reads nothing when it is created. Subclasses set ``name`` and implement ``find``.
    """

    name: str
    """Name of the text in messages."""

    named_splits: ClassVar[Mapping[str, tuple[int, int, int]]] = {}
    """Symbols of training, validation and test, by name of the division."""

    symbols: ClassVar[int] = SYMBOLS
    """Distinct symbols expected before the text is read."""

    def check(self) -> None:
        """Raise UserError if the text is certainly not available, without reading or downloading it."""

    def find(self, cache_dir: Path | None, evaluated: bool = False) -> FoundText:
        """Return the text; download, unpack or join it if needed.

        Args:
            cache_dir: see ``read_corpus``.
            evaluated: True if a trained network is only evaluated; any text may then replace a particular one.

        Raises:
            UserError: the text is not available.
        """
        raise NotImplementedError(f"{type(self).__name__} must define find")
