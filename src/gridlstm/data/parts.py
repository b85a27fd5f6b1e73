"""Texts that come in parts, one each for training, validation and test, joined into one file."""

import json
import logging
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from gridlstm.atomic import replacing, write_text
from gridlstm.data.corpus import cache_directory
from gridlstm.data.files import only_process
from gridlstm.data.text import TextData
from gridlstm.data.vocabulary import END_OF_LINE, Level
from gridlstm.errors import UserError

log = logging.getLogger(__name__)


class PartedTextData(TextData):
    """A text in parts, which are the splits; see ``TextData``.

    The parts are joined into one file in the cache, of which all starts but the first read the ids alone. Where there
    is but one part, ``splits`` divides it.

    Subclasses give ``key``, equal for equal texts, and ``read_parts``.
    """

    _joined: Path | None = None

    def key(self) -> str:
        """What names the text in the cache: letters, digits, - and _."""
        raise NotImplementedError(f"{type(self).__name__} must define key")

    def read_parts(self) -> Sequence[Iterable[str]]:
        """The texts of the three splits, or of one, in pieces."""
        raise NotImplementedError(f"{type(self).__name__} must define read_parts")

    def source(self) -> Path:
        if self._joined is None:
            self._joined = self._find()
        return self._joined

    def _find(self) -> Path:
        try:
            directory = cache_directory(None if self.cache_dir is None else Path(self.cache_dir))
            joined = directory / f"{self.key()}.txt"
            if not _whole(joined):
                with only_process(joined.with_suffix(".lock"), f"joining {joined}"):
                    if not _whole(joined):
                        self._join(joined)
        except OSError as error:
            raise UserError(f"the text cannot be written into the cache: {error}. Set task.data.cache_dir.") from error
        return joined

    @property
    def parts(self) -> tuple[range, range, range]:
        lengths = json.loads(_lengths_file(self.source()).read_text())[self.level]
        if len(lengths) == 1:
            return super().parts
        if lengths != [max(length, 2) for length in lengths]:
            raise UserError(f"training, validation and test have {lengths} symbols: each needs at least 2.")
        train, val, test = (range(begin, end) for begin, end in pairwise(accumulate(lengths, initial=0)))
        return train, val, test

    def _join(self, joined: Path) -> None:
        lengths: dict[Level, list[int]] = {"byte": [], "char": [], "word": []}
        with replacing(joined) as file:
            for part in self.read_parts():
                for counts in lengths.values():
                    counts.append(0)
                for marked in part:
                    piece = marked.removeprefix("\ufeff")  # a mark of the encoding, no character of the text
                    raw = piece.encode()
                    file.write(raw)
                    lengths["byte"][-1] += len(raw)
                    lengths["char"][-1] += len(piece)
                    lengths["word"][-1] += len(piece.replace("\n", f" {END_OF_LINE} ").split())
        write_text(_lengths_file(joined), json.dumps(lengths) + "\n")
        log.info("joined in %s", joined)


def _whole(joined: Path) -> bool:
    """Whether both files are there. Large ones are what is deleted where there is no room."""
    return joined.exists() and _lengths_file(joined).exists()


def _lengths_file(joined: Path) -> Path:
    """Written last: where it is, the text is whole."""
    return joined.with_suffix(".parts.json")
