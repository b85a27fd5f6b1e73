"""enwik8, the first 10^8 bytes of the English Wikipedia of 2006, found on disk or downloaded (section 4.3)."""

import logging
from pathlib import Path

from gridlstm.data.download import fetch, unzip_member
from gridlstm.data.files import mismatch, only_process, recorded_digest, sha256_of
from gridlstm.data.source import FoundText, TextSource
from gridlstm.errors import UserError
from gridlstm.files import write_text

log = logging.getLogger(__name__)


class Enwik8(TextSource):
    """Bytes of the genuine enwik8, verified by size and SHA-256.

    ``path`` is the only place searched if it is given. Otherwise ``data_dir`` and ``data_dir``/enwik8 are searched for
    enwik8 or enwik8.zip, and then the file is downloaded to ``data_dir``. Any number of processes may call ``find`` at
    once: one downloads. A file of that name with other contents is never replaced.

    Args:
        data_dir: directory of the text. It must be writable only if something is downloaded or unpacked.
        path: the user's own enwik8 or enwik8.zip.
        url: address of the zip archive, whose one member is enwik8.
        zip_size, zip_sha256: size in bytes and SHA-256 in hexadecimal of the archive.
        size, sha256: the same for enwik8. If ``sha256`` is None, the SHA-256 of the first unpacked file is recorded in
            <name>.sha256 beside it and expected from then on.

    Raises:
        UserError: from ``find``, if the file is neither found nor downloaded; the message lists every place and reason.
    """

    name = "enwik8"

    # "standard" has the test split of the paper and of Chung et al. 2015. The others test on the last 4 million bytes
    # (Graves 2013) and the last 10 million (Sutskever et al. 2011).
    named_splits = {  # noqa: RUF012  # declared as a ClassVar
        "standard": (90_000_000, 5_000_000, 5_000_000),
        "paper": (90_000_000, 5_000_000, 5_000_000),
        "graves2013": (92_000_000, 4_000_000, 4_000_000),
        "mrnn2011": (80_000_000, 10_000_000, 10_000_000),
    }

    def __init__(
        self,
        data_dir: str | Path,
        path: str | Path | None = None,
        url: str = "http://mattmahoney.net/dc/enwik8.zip",
        zip_size: int = 36_445_475,
        zip_sha256: str | None = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        size: int = 100_000_000,
        sha256: str | None = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    ) -> None:
        self.data_dir = Path(data_dir).expanduser()
        self.path = None if path is None else Path(path).expanduser()
        self.url = url
        self.zip_size = zip_size
        self.zip_sha256 = zip_sha256
        self.size = size
        self.sha256 = sha256

    @property
    def _zip_name(self) -> str:
        return f"{self.name}.zip"

    def find(self, cache_dir: Path | None, evaluated: bool = False) -> FoundText:
        if evaluated and self.path is not None:
            genuine = (self.size, self.sha256), (self.zip_size, self.zip_sha256)
            if all(mismatch(self.path, *one) for one in genuine):
                log.warning("%s is not %s: the results are for that text", self.path, self.name)
                return FoundText(self.path)
        file = self._find()
        self._record(file)
        return FoundText(file)

    def _find(self) -> Path:
        directories = [self.data_dir, self.data_dir / self.name]
        files = [directory / self.name for directory in directories]
        archives = [directory / self._zip_name for directory in directories]
        if self.path is not None:
            file, not_file = _genuine([self.path], self.size, self.sha256)
            if file is not None:
                return file
            archives, not_archive = [self.path], _genuine([self.path], self.zip_size, self.zip_sha256)[1]
            if not_archive:
                raise UserError(
                    f"path={self.path} is neither {self.name} ({not_file[0]}) nor {self._zip_name} ({not_archive[0]}). "
                    f"Name the genuine file, or remove the option. Use task=text for any other text."
                )
        file, reasons = _genuine(files, self.size, self.sha256)
        if file is not None:
            return file
        try:
            with only_process(self.data_dir / f".{self.name}.lock", f"preparing {self.name}"):
                file, reasons = _genuine(files, self.size, self.sha256)  # another process may have written it meanwhile
                return file or self._prepare(archives, reasons)
        except OSError as error:
            reasons.append(
                f"{self.data_dir}: cannot be written ({error.strerror}), so nothing can be downloaded or unpacked "
                f"there. Make it writable, or choose another directory with data_dir=…"
            )
            raise self._not_found(reasons) from error

    def _prepare(self, archives: list[Path], reasons: list[str]) -> Path:
        """Unpack the first genuine archive, or download one, and return the file."""
        archive, not_archives = _genuine(archives, self.zip_size, self.zip_sha256)
        reasons = reasons + not_archives
        home = self.data_dir / self.name if (self.data_dir / self.name).is_dir() else self.data_dir
        for target in [home / self.name] if archive else [home / self.name, home / self._zip_name]:
            if target.exists():
                raise self._not_found([*reasons, f"{self.url}: not downloaded because {target} exists: remove it"])
        if archive is not None:
            return self._unpack(archive, home)
        log.info("downloading %s to %s", self.url, home)
        downloaded = home / self._zip_name
        try:
            fetch(self.url, downloaded, self.zip_size, self.zip_sha256)
            return self._unpack(downloaded, home)
        except UserError as error:
            raise self._not_found([*reasons, str(error)]) from error
        finally:
            downloaded.unlink(missing_ok=True)

    def _unpack(self, archive: Path, home: Path) -> Path:
        unzip_member(archive, self.name, home / self.name, self.size, self.sha256)
        return home / self.name

    def _record(self, file: Path) -> None:
        """Write the SHA-256 of a file beside it, if none is published and none is recorded."""
        record = recorded_digest(file)
        if self.sha256 is not None or record.exists():
            return
        digest = sha256_of(file)
        try:
            with only_process(file.with_name(f".{self.name}.lock"), f"recording the SHA-256 of {file}"):
                if not record.exists():
                    write_text(record, f"{digest}  {file.name}\n")
        except OSError as error:
            log.warning("the SHA-256 of %s is %s, but cannot be recorded: %s", file, digest, error)
        else:
            log.info("the SHA-256 of %s is %s, and is expected from now on", file, digest)

    def _not_found(self, reasons: list[str]) -> UserError:
        tried = "".join(f"\n  - {reason}" for reason in reasons)
        return UserError(
            f"{self.name} was not found and could not be downloaded. Tried:{tried}\n"
            f"Put {self.name} or {self._zip_name} (from {self.url}) into {self.data_dir}, or name it with path=…. "
            f"Without a download: use task=memorization, or task=text with any text."
        )


def _genuine(places: list[Path], size: int, sha256: str | None) -> tuple[Path | None, list[str]]:
    """Return the first place with a file of this size and SHA-256, and the reason against each earlier place."""
    reasons: list[str] = []
    for place in places:
        reason = mismatch(place, size, sha256)
        if reason is None:
            return place, reasons
        reasons.append(f"{place}: {reason}")
    return None, reasons
