"""Sentences with their translations: the base of all sources, reading of files, and division into splits."""

import codecs
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gridlstm.data.base import Split
from gridlstm.data.corpus import check_unpacked, contents
from gridlstm.errors import UserError

Pair = tuple[str, str]
"""A source sentence and its translation."""

NUM_VAL = 1000
"""Sources of a split taken from the training pairs, by default."""


class Sentences(NamedTuple):
    """Sentences of one split."""

    sources: list[str]
    """Sentences to translate."""
    references: list[list[str]]
    """One or more translations of each sentence."""

    def pairs(self) -> list[Pair]:
        """Return each source with each of its translations, in order."""
        found = zip(self.sources, self.references, strict=True)
        return [(source, reference) for source, references in found for reference in references]

    @classmethod
    def one_each(cls, pairs: Sequence[Pair]) -> "Sentences":
        """Return pairs as they are, each source with its one translation."""
        return cls([source for source, _ in pairs], [[target] for _, target in pairs])


class PairSource:
    """Sentences with translations in three splits.

    A source reads nothing when it is created. Subclasses set ``name`` and implement ``read``.
    """

    name: str
    """Name of the data set in messages."""

    def check(self) -> None:
        """Raise UserError if the sentences are certainly not available, without reading or downloading them."""

    def prepare(self) -> None:
        """Download what is missing and can be downloaded.

        Raises:
            UserError: a download fails.
        """

    def read(self) -> Mapping[Split, Sentences]:
        """Return the sentences of each split.

        Raises:
            UserError: the sentences are not available, or not as expected.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read")


def find_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the path of a file in the first folder that has it, or None."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file (plain, .gz, .xz, .bz2 or .zip) without line ends.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is packed without a name that says so.
    """
    raw = contents(path)
    check_unpacked(raw, path)
    return list(decoded_lines(io.BytesIO(raw), str(path)))


def decoded_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a text without line ends, and without a byte order mark; errors call the text ``name``.

    Raises:
        UserError: a line is not UTF-8.
    """
    for number, line in enumerate(lines, 1):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            yield text.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            encoding = "utf-16" if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"
            raise UserError(
                f"{name} is not UTF-8 in line {number:,} ({error.reason}). Expected UTF-8. Convert it, for example "
                f"with iconv -f {encoding} -t utf-8."
            ) from error


def read_parallel(source: Path, references: Sequence[Path]) -> Sentences:
    """Return the sentences of parallel files: line n of every file belongs to line n of the others.

    Empty lines are ignored where another reference file has a line, because sentences may have different numbers of
    references.

    Raises:
        UserError: a file cannot be read, or two files differ in their numbers of lines.
    """
    sources = read_lines(source)
    columns = []
    for file in references:
        columns.append(read_lines(file))
        if len(columns[-1]) != len(sources):
            raise UserError(
                f"{source} has {len(sources):,} lines and {file} has {len(columns[-1]):,}, expected the same number: "
                f"line n of one translates line n of the other. Use files that are aligned line by line."
            )
    rows = zip(*columns, strict=True)
    return Sentences(sources, [[line for line in row if line.strip()] or [row[0]] for row in rows])


def by_source(pairs: Iterable[Pair]) -> Sentences:
    """Return the distinct sources of pairs in the order of first occurrence, each with its distinct translations."""
    found: dict[str, dict[str, None]] = {}
    for source, target in pairs:
        found.setdefault(source, {})[target] = None
    return Sentences(list(found), [list(targets) for targets in found.values()])


def split_off(pairs: Sequence[Pair], number: int, option: str) -> tuple[list[Pair], Sentences]:
    """Return the pairs left for training, and a split of ``number`` distinct sources with all their translations.

    A hash of the source decides: the split depends neither on the order of the pairs nor on a seed, and no source of
    the split is left for training.

    Args:
        pairs: sources with their translations.
        number: sources of the split.
        option: name of the option that sets ``number``, for errors.

    Raises:
        UserError: no source would be left for training.
    """
    sources = sorted({source for source, _ in pairs}, key=lambda source: hashlib.sha256(source.encode()).digest())
    if 0 < len(sources) <= number:  # the data refuse an empty training split
        raise UserError(
            f"{option}={number} leaves none of {len(sources):,} source sentences to train on. Use a smaller number."
        )
    chosen = set(sources[:number])
    return [pair for pair in pairs if pair[0] not in chosen], by_source(pair for pair in pairs if pair[0] in chosen)
