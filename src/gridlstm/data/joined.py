"""Texts that come in parts for training, validation and test, joined into one file."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from gridlstm.data.files import only_process
from gridlstm.data.source import FoundText, TextSource
from gridlstm.data.streams import PARTS
from gridlstm.data.vocabulary import END_OF_LINE, Level
from gridlstm.errors import UserError
from gridlstm.files import cache_directory, replacing, write_text

log = logging.getLogger(__name__)


class JoinedSource(TextSource):
    """Text in parts, joined into one file in the cache; only the first start reads the parts.

    Subclasses set ``name`` and implement ``key`` and ``read_parts``.
    """

    def key(self) -> str:
        """Return the name of the text in the cache, equal for equal texts: letters, digits, - and _.

        Raises:
            OSError: the text cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define key")

    def read_parts(self) -> Mapping[str, Iterable[str]]:
        """Return the text of each part in pieces: of train, and of validation and test if they exist."""
        raise NotImplementedError(f"{type(self).__name__} must define read_parts")

    def check(self) -> None:
        self._readable_key()

    def find(self, cache_dir: Path | None, evaluated: bool = False) -> FoundText:
        key = self._readable_key()
        try:
            joined = cache_directory(cache_dir) / f"{key}.txt"
            lengths = _lengths_of_whole(joined)
            if lengths is not None:
                log.info("%s is read from the joined file in the cache: %s", self.name, joined)
            else:
                with only_process(joined.with_suffix(".lock"), f"joining {joined}"):
                    lengths = _lengths_of_whole(joined) or self._join(joined)
        except OSError as error:
            raise UserError(f"the text cannot be cached: {error}. Use another directory: cache_dir=….") from error
        return FoundText(joined, lengths)

    def _readable_key(self) -> str:
        try:
            return self.key()
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {error}. Make it readable, or name another.") from error

    def _join(self, joined: Path) -> dict[Level, dict[str, int]]:
        parts = self.read_parts()
        names = [name for name in PARTS if name in parts]
        lengths = {level: dict.fromkeys(names, 0) for level in get_args(Level)}
        open_word = False  # the text so far ends within a word, which the next piece continues
        with replacing(joined) as file:
            for name in names:
                for marked in parts[name]:
                    piece = marked.removeprefix("\ufeff")  # marks the encoding, not a character of the text
                    raw = piece.encode()
                    file.write(raw)
                    lengths["byte"][name] += len(raw)
                    lengths["char"][name] += len(piece)
                    words = len(piece.replace("\n", f" {END_OF_LINE} ").split())
                    lengths["word"][name] += words - (open_word and piece != "" and not piece[0].isspace())
                    open_word = not piece[-1].isspace() if piece else open_word
        write_text(_lengths_file(joined), json.dumps(lengths) + "\n")
        log.info("joined in %s", joined)
        return lengths


def _lengths_of_whole(joined: Path) -> dict[Level, dict[str, int]] | None:
    """Return the lengths of the parts if both files exist and fit, else None.

    Users delete large files, and a crash may leave them unfinished.
    """
    try:
        lengths: dict[Level, dict[str, int]] = json.loads(_lengths_file(joined).read_text())
        return lengths if joined.stat().st_size == sum(lengths["byte"].values()) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _lengths_file(joined: Path) -> Path:
    """Return the file with the lengths of the parts; it is written last, so its text is complete if it exists."""
    return joined.with_suffix(".parts.json")
