"""Text source for the user's copy of the Penn Treebank's Wall Street Journal, as used for language models."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gridlstm.data.files import stamp
from gridlstm.data.joined import JoinedSource
from gridlstm.data.streams import PARTS
from gridlstm.errors import UserError

FILES = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")


class PennTreebank(JoinedSource):
    """Text in three parts: ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt`` of Mikolov et al. 2010.

    They hold lower-case words, with <unk> for rare words and N for numbers. The space at both ends of every line is
    removed, as in the character-level protocol: 5.02 million characters for training. At level word, a line ends with
    <eos>.

    The treebank is licensed by the Linguistic Data Consortium, and is not downloaded.

    Args:
        path: directory of the three files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.expanduser(path))
        self.name = str(self.path)

    def key(self) -> str:
        stats = [(str(file.resolve()), stamp(file.stat())) for file in self._files()]
        return f"penn_treebank-{hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}"

    def read_parts(self) -> Mapping[str, Iterator[str]]:
        return {name: _lines(file) for name, file in zip(PARTS, self._files(), strict=True)}

    def _files(self) -> list[Path]:
        files = [self.path / name for name in FILES]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise UserError(
                f"{', '.join(missing)}: no such file. Expected a directory with {', '.join(FILES)}, which are licensed "
                f"and cannot be downloaded. Set path=…."
            )
        return files


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield line.strip() + "\n"
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error.reason}. Use the original file.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
