"""Check the contents of data files, and let one process at a time write them."""

import hashlib
import io
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from gridlstm.errors import UserError

log = logging.getLogger(__name__)

UNPACKED_ANYWAY = 2**24
"""Bytes that an archive of any size may unpack to."""
_TIMES_PACKED = 100
"""Largest ratio of unpacked to packed size of larger archives. Text packs to a tenth at best, zeros to a thousandth."""
_PIECE = 2**20


def check_file(path: Path) -> os.stat_result:
    """Return the state of a file.

    Raises:
        UserError: the path is not a regular file or cannot be reached.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        reason = "there is no such file"
    except OSError as error:
        reason = str(error.strerror)
    else:
        if stat.S_ISREG(found.st_mode):
            return found
        reason = "it is a directory" if stat.S_ISDIR(found.st_mode) else "it is not a file"
    raise UserError(f"{path} cannot be read: {reason}. Name a text file (plain, .xz, .gz, .bz2 or .zip): path=….")


@contextmanager
def only_process(lock_file: Path, purpose: str) -> Iterator[None]:
    """Hold an exclusive lock between processes; log a line while waiting for another holder.

    Args:
        lock_file: path of the lock file, which is created with its directory if needed.
        purpose: task of the holder, for the log.

    Raises:
        OSError: the lock file cannot be created.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that is %s (it holds %s)", purpose, lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def recorded_digest(path: Path) -> Path:
    """Return the path of a file's recorded SHA-256, which is beside it in the format of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(path: Path, size: int, sha256: str | None) -> str | None:
    """Return why a file is not the one of this size (bytes) and SHA-256 (hexadecimal), or None if it is.

    If ``sha256`` is None, compare with the recorded SHA-256, if any.
    """
    try:
        if not path.exists():
            return "no such file"
        if not path.is_file():
            return "not a file"
        if path.stat().st_size != size:
            return f"{path.stat().st_size:,} bytes, expected {size:,}"
        if sha256 is None and (record := recorded_digest(path)).is_file():
            sha256 = record.read_text().split(" ")[0]
        if sha256 is None:
            return None
        digest = sha256_of(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return None if digest == sha256 else f"SHA-256 {digest}, expected {sha256}"


def stamp(found: os.stat_result) -> list[int]:
    """Return a value that changes with the file, even if a copy keeps size and date."""
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def read_unpacked(unpacking: IO[bytes], archive: Path) -> bytes:
    """Return everything that ``unpacking`` reads from ``archive``; stop early if it cannot be text.

    Raises:
        UserError: the content exceeds ``UNPACKED_ANYWAY`` bytes and 100 times the size of the archive.
    """
    most = max(UNPACKED_ANYWAY, _TIMES_PACKED * archive.stat().st_size)
    content = io.BytesIO()
    while piece := unpacking.read(_PIECE):
        content.write(piece)
        if content.tell() > most:
            raise UserError(
                f"{archive} unpacks to over {_TIMES_PACKED} times its size, which text does not. If that is intended, "
                f"unpack it yourself and name the unpacked file."
            )
    return content.getvalue()
