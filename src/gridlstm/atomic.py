"""Files that are whole or not there, whenever somebody else reads them or the writer is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gridlstm.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` beside ``path`` and then puts it in its place."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and then puts it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as file:  # small files, some of them written every other second
        file.write(content)


@contextmanager
def replacing(destination: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens ``<destination>.part`` for writing, which becomes ``destination`` in one step when the block succeeds.

    When the block fails, Ctrl-C included, the part is removed and ``destination`` stays as it was. A stale part, left
    by a killed process, is overwritten. Callers that may race hold a lock (``only_process``).

    Args:
        sync: wait until the content is on the disk, against a loss of power.

    Raises:
        OSError: the part cannot be written or renamed. It names ``destination``.
    """
    part = destination.with_name(destination.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(part, destination)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # an error of writing does not know the file
            error.filename = str(destination)
        raise


@contextmanager
def only_writer(lock: Path, what: str, option: str) -> Iterator[None]:
    """Makes the directory of ``lock`` and holds it: two writers would overwrite each other's files.

    Args:
        what: the writer, such as "run"; ``option`` names another directory.

    Raises:
        UserError: another process holds it.
    """
    from filelock import FileLock, Timeout  # Hydra imports our launcher at every start

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise UserError(
            f"another {what} is writing into {lock.parent}. Wait for it, or give this one its own: {option}=…"
        ) from error
    try:
        yield
    finally:
        held.release()
