"""Files of data: checking contents, one writing process at a time."""

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
"""Bytes that an archive may unpack to, however small it is."""
_TIMES_PACKED = 100
"""Times its own size that a larger archive may unpack to. Text packs to a tenth at best, zeros to a thousandth."""
_PIECE = 2**20


def check_file(path: Path) -> os.stat_result:
    """Return the state of a file.

    Raises:
        UserError: it is no file, or cannot be reached.
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
        reason = "it is a directory" if stat.S_ISDIR(found.st_mode) else "it is no file"
    raise UserError(f"{path} cannot be read: {reason}. Name a text file (plain, .xz, .gz, .bz2 or .zip): path=….")


@contextmanager
def only_process(lock_file: Path, purpose: str) -> Iterator[None]:
    """Holds an exclusive lock between processes; waits for the one that has it, and says so in the log.

    Args:
        lock_file: created, with its directory, if need be.
        purpose: what the holder does, for the log.

    Raises:
        OSError: the lock file cannot be made.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process, which is %s (it holds %s)", purpose, lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def recorded_digest(path: Path) -> Path:
    """Where the SHA-256 of a file is kept that nobody has published: beside it, as ``sha256sum`` writes it."""
    return path.with_name(path.name + ".sha256")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(path: Path, size: int, sha256: str | None) -> str | None:
    """Why the file is not the one of this size (bytes) and SHA-256 (hexadecimal); None when it is.

    Where ``sha256`` is None, the recorded one is expected, if there is any.
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
    """What tells two states of a file apart, also where size and date are the same, as a copy can leave them."""
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def read_unpacked(unpacking: IO[bytes], archive: Path) -> bytes:
    """Return all that ``unpacking`` gives, which reads ``archive``, and stop early where that can be no text.

    Raises:
        UserError: it is over ``UNPACKED_ANYWAY`` bytes, and over 100 times as long as the archive.
    """
    most = max(UNPACKED_ANYWAY, _TIMES_PACKED * archive.stat().st_size)
    content = io.BytesIO()
    while piece := unpacking.read(_PIECE):
        content.write(piece)
        if content.tell() > most:
            raise UserError(
                f"{archive} unpacks to over {_TIMES_PACKED} times its size, as no text does. Unpack it yourself if it "
                f"is meant, and name the unpacked file."
            )
    return content.getvalue()
