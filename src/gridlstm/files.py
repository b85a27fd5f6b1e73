"""Files that are whole or not there, whoever reads them meanwhile: text, JSON, CSV and PNG."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gridlstm.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def to_json(value: Any, **options: Any) -> str:
    """``json.dumps`` with null in the place of numbers that are none."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def read_json(path: Path) -> dict[str, Any]:
    """Return an object, or {} where the file is not there.

    Raises:
        UserError: it holds something else. Nothing of ours leaves such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # no JSON, or bytes that are no text
        raise UserError(f"{path} is damaged: {error}. Delete it to continue without it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no object. Delete it to continue without it.")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows of a table, the first with its columns."""
    write_text(path, to_csv(rows))


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows of a table, the first with its columns: numbers at full precision, None as an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def write_png(path: Path, figure: "Figure") -> None:
    """Write a figure."""
    write_bytes(path, to_png(figure))


def to_png(figure: "Figure") -> bytes:
    """Return a figure with all that stands beside its axes."""
    out = io.BytesIO()
    figure.savefig(out, dpi=110, format="png", bbox_inches="tight")
    return out.getvalue()


def writable(out: Path) -> Path:
    """The directory ``out``, its ~ expanded; it may be new, and is seen to be fit before anything is computed for it.

    Raises:
        UserError: it is a file, lies below one, or must not be written.
    """
    out = Path(os.path.expanduser(out))
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"out={out} cannot be written, {nearest} is a file: give a directory, which may be a new one.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"out={out} cannot be written, {nearest} is not open to you: give another directory.")
    return out


def cache_directory(given: Path | None = None) -> Path:
    """Return the directory given, else ``$XDG_CACHE_HOME/gridlstm``, or ``~/.cache/gridlstm``.

    Raises:
        OSError: there is no home directory.
    """
    if given is not None:
        return given.expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise FileNotFoundError("no home directory: set XDG_CACHE_HOME")
    return Path(base) / "gridlstm"
