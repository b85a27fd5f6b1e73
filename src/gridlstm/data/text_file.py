"""Text source that reads any text file."""

import os
from pathlib import Path

from gridlstm.data.files import check_file
from gridlstm.data.source import FoundText, TextSource


class File(TextSource):
    """Text file: plain, .xz, .gz, .bz2, or a .zip of one member; see ``read_corpus``.

    Args:
        path: path of the file.

    Raises:
        ValueError: the path is empty.
    """

    def __init__(self, path: str | Path) -> None:
        if str(path) == "":
            raise ValueError("path must name a text file, got ''.")
        self.path = Path(os.path.expanduser(path))
        self.name = str(self.path)

    def check(self) -> None:
        check_file(self.path)

    def find(self, cache_dir: Path | None, evaluated: bool = False) -> FoundText:
        self.check()
        return FoundText(self.path)
