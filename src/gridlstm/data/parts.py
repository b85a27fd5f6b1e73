"""Texts that come in parts, one each for training, validation and test, joined into one file."""

import json
import logging
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import get_args

from gridlstm.atomic import replacing, write_text
from gridlstm.data.corpus import cache_directory
from gridlstm.data.files import only_process
from gridlstm.data.streams import SHARES, split_text
from gridlstm.data.text import TextData
from gridlstm.data.vocabulary import END_OF_LINE, Level
from gridlstm.errors import UserError

log = logging.getLogger(__name__)

PARTS = ("train", "validation", "test")
"""Names of the parts, in the order of the joined text."""


class PartedTextData(TextData):
    """A text in parts, which are the splits; see ``TextData``.

    The parts are joined into one file in the cache, of which all starts but the first read the ids alone. Where
    validation or test, or both, are no parts, their share of ``splits`` is cut from the end of train.

    Subclasses give ``key``, equal for equal texts, and ``read_parts``.
    """

    _joined: Path | None = None

    def key(self) -> str:
        """What names the text in the cache: letters, digits, - and _."""
        raise NotImplementedError(f"{type(self).__name__} must define key")

    def read_parts(self) -> Mapping[str, Iterable[str]]:
        """The text of each part, in pieces: of train, and of validation and test where they are there."""
        raise NotImplementedError(f"{type(self).__name__} must define read_parts")

    @property
    def called(self) -> str:
        return str(self.path)

    def source(self) -> Path:
        if self._joined is None:
            self._joined = self._find()
        return self._joined

    def _find(self) -> Path:
        try:
            key = self.key()
        except OSError as error:
            raise UserError(f"{self.called} cannot be read: {error}. Name another, or make it readable.") from error
        try:
            directory = cache_directory(None if self.cache_dir is None else Path(self.cache_dir))
            joined = directory / f"{key}.txt"
            if _whole(joined):
                log.info("%s is taken from the cache, joined: %s", self.called, joined)
            else:
                with only_process(joined.with_suffix(".lock"), f"joining {joined}"):
                    if not _whole(joined):
                        self._join(joined)
        except OSError as error:
            raise UserError(f"the text cannot be written into the cache: {error}. Set task.data.cache_dir.") from error
        return joined

    def setup(self, stage: str | None = None) -> None:
        told = self._told
        super().setup(stage)
        if self._told and not told and self.splits != SHARES:
            lengths = self._lengths()
            shares = zip(PARTS[1:], self.splits[1:], strict=False)
            if own := " and ".join(name for name, share in shares if share and name in lengths):
                log.warning("task.data.splits=%s has no effect on %s: the text has its own", list(self.splits), own)

    def _lengths(self) -> dict[str, int]:
        lengths: dict[str, int] = json.loads(_lengths_file(self.source()).read_text())[self.level]
        return lengths

    @property
    def parts(self) -> tuple[range, range, range]:
        lengths = self._lengths()
        if set(lengths) == {"train"}:
            return super().parts
        if any(length < 2 for length in lengths.values()):
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(f"symbols of the parts of {self.called}: {told}; each needs at least 2.")
        spans = pairwise(accumulate(lengths.values(), initial=0))
        own = {name: range(*span) for name, span in zip(lengths, spans, strict=True)}
        for n, name in enumerate(PARTS):
            if name not in own:
                cut = split_text(lengths["train"], self.splits, needed=[name])
                shares = isinstance(self.splits[0], float)
                begin = lengths["train"] - len(cut[n]) if shares else cut[0].stop
                own["train"], own[name] = range(begin), range(begin, begin + len(cut[n]))
        train, validation, test = (own[name] for name in PARTS)
        return train, validation, test

    def _join(self, joined: Path) -> None:
        parts = self.read_parts()
        names = [name for name in PARTS if name in parts]
        lengths = {level: dict.fromkeys(names, 0) for level in get_args(Level)}
        with replacing(joined) as file:
            for name in names:
                for marked in parts[name]:
                    piece = marked.removeprefix("\ufeff")  # a mark of the encoding, no character of the text
                    raw = piece.encode()
                    file.write(raw)
                    lengths["byte"][name] += len(raw)
                    lengths["char"][name] += len(piece)
                    lengths["word"][name] += len(piece.replace("\n", f" {END_OF_LINE} ").split())
        write_text(_lengths_file(joined), json.dumps(lengths) + "\n")
        log.info("joined in %s", joined)


def _whole(joined: Path) -> bool:
    """Whether both files are there. Large ones are what is deleted where there is no room."""
    return joined.exists() and _lengths_file(joined).exists()


def _lengths_file(joined: Path) -> Path:
    """Written last: where it is, the text is whole."""
    return joined.with_suffix(".splits.json")
