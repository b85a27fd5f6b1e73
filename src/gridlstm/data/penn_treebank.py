"""The Penn Treebank's Wall Street Journal as language models read it, from the user's own copy."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gridlstm.data.files import stamp
from gridlstm.data.parts import PARTS, PartedTextData
from gridlstm.errors import UserError

FILES = ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")


class PennTreebankData(PartedTextData):
    """The three files ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt`` of Mikolov et al. 2010, which are the
    splits; see ``TextData``.

    They hold lower-case words, rare ones as <unk>, numbers as N. The space at both ends of every line is left out, as
    in the character-level protocol: 5.02 million characters to train on. At level word, a line ends with <eos>.

    The treebank is licensed by the Linguistic Data Consortium and nothing here downloads it.

    Args:
        path: of the directory with the three files.

    Raises:
        UserError: from ``setup``: a file is not there.
    """

    def _files(self) -> list[Path]:
        if self.path is None:
            raise UserError("no directory was named: task.path=<the directory of ptb.train.txt>.")
        files = [Path(os.path.expanduser(self.path)) / name for name in FILES]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise UserError(
                f"{', '.join(missing)}: no such file. task.path must be a directory with {', '.join(FILES)}, which are "
                f"licensed and not downloaded here."
            )
        return files

    def key(self) -> str:
        stats = [(str(file.resolve()), stamp(file.stat())) for file in self._files()]
        return f"penn_treebank-{hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}"

    def read_parts(self) -> Mapping[str, Iterator[str]]:
        return {name: _lines(file) for name, file in zip(PARTS, self._files(), strict=True)}


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield line.strip() + "\n"
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8: {error.reason}. Take the original file.") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from error
