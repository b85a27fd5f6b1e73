"""Files that are whole or not there, whenever somebody else reads them or the writer is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gridlstm.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` beside ``path`` and then puts it in its place."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path`` and then puts it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


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
