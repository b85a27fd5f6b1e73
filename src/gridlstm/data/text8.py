"""text8: the text of enwik8's articles in 27 symbols (a to z and space), made by Matt Mahoney; 10^8 bytes."""

from pathlib import Path

from gridlstm.data.enwik8 import Enwik8
from gridlstm.data.files import recorded_digest
from gridlstm.errors import UserError

_LETTERS = frozenset(b" abcdefghijklmnopqrstuvwxyz")


class Text8(Enwik8):
    """Bytes of text8; see ``Enwik8``. Its checksums have not been published, so there are no defaults.

    Args:
        data_dir, path, url, zip_size, zip_sha256, size, sha256: see ``Enwik8``.
    """

    name = "text8"
    symbols = len(_LETTERS)

    def __init__(
        self,
        data_dir: str | Path,
        path: str | Path | None = None,
        url: str = "http://mattmahoney.net/dc/text8.zip",
        zip_size: int = 31_344_016,
        zip_sha256: str | None = None,
        size: int = 100_000_000,
        sha256: str | None = None,
    ) -> None:
        super().__init__(data_dir, path, url=url, zip_size=zip_size, zip_sha256=zip_sha256, size=size, sha256=sha256)

    def _record(self, file: Path) -> None:
        """Record the SHA-256, after a check that the file holds only the symbols of text8."""
        if not recorded_digest(file).exists() and (strange := set(file.read_bytes()) - _LETTERS):
            raise UserError(
                f"{file} is not text8: it holds {len(strange)} bytes other than the letters a to z and the space, such "
                f"as {min(strange)}. Use task=text for any other text."
            )
        super()._record(file)
