"""Files that are replaced atomically, so that readers never see part of one: text, JSON, CSV and PNG."""

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
    """Write ``text`` to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as file:  # small files, some of them written every two seconds
        file.write(content)


@contextmanager
def replacing(destination: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open ``<destination>.part`` for writing, and rename it to ``destination`` when the block succeeds.

    If the block fails, even by Ctrl-C, the part is removed and ``destination`` does not change. A stale part of a
    killed process is overwritten. Callers that may race hold a lock (``only_writer``).

    Args:
        sync: wait until the content is on the disk, to survive a loss of power.

    Raises:
        OSError: if the part cannot be written or renamed. It names ``destination``.
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
        if isinstance(error, OSError) and error.filename is None:  # errors of write() lack the file name
            error.filename = str(destination)
        raise


@contextmanager
def only_writer(lock: Path, what: str, option: str) -> Iterator[None]:
    """Create the directory of ``lock`` and hold the lock: two writers would overwrite each other's files.

    Args:
        what: the writer, such as "run".
        option: the option that sets another directory.

    Raises:
        UserError: if another process holds the lock.
    """
    from filelock import FileLock, Timeout  # Hydra imports our launcher at every start

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise UserError(
            f"another {what} is writing into {lock.parent}. Wait for it, or give this one another directory: {option}=…"
        ) from error
    try:
        yield
    finally:
        held.release()


def to_json(value: Any, **options: Any) -> str:
    """Return JSON with null instead of NaN and infinities."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if the file does not exist.

    Raises:
        UserError: if the file contains anything else. No code of this package writes such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # invalid JSON or invalid UTF-8
        raise UserError(f"{path} is damaged: {error}. Delete it to continue without it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected a JSON object. Delete it to continue without it.")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write the rows of a table; the first row holds the column names."""
    write_text(path, to_csv(rows))


def to_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV, the first with the column names: numbers at full precision, None as an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def write_png(path: Path, figure: "Figure") -> None:
    """Write a figure."""
    write_bytes(path, to_png(figure))


def to_png(figure: "Figure") -> bytes:
    """Return a figure as PNG, cropped to its content."""
    out = io.BytesIO()
    figure.savefig(out, dpi=110, format="png", bbox_inches="tight")
    return out.getvalue()


def writable(out: Path, name: str = "out") -> Path:
    """Return the directory ``out`` with ~ expanded, after checking that it can be created and written.

    Args:
        name: what messages call it.

    Raises:
        UserError: if it is a file, lies below one, or is not writable.
    """
    out = Path(os.path.expanduser(out))
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{name}={out} cannot be written: {nearest} is a file. Give a directory, which may be new.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{name}={out} cannot be written: no permission for {nearest}. Give another directory.")
    return out


def check_different(files: Sequence[Path]) -> None:
    """Raise UserError if one file is given twice, which would count twice in a mean."""
    seen: set[Path] = set()
    for file in files:
        if (real := file.resolve()) in seen:
            raise UserError(f"{file} is given twice, and would count twice. Expected different files. Remove one.")
        seen.add(real)


def cache_directory(given: Path | None = None) -> Path:
    """Return ``given``, or else ``$XDG_CACHE_HOME/gridlstm`` or ``~/.cache/gridlstm``.

    Raises:
        OSError: if there is no home directory.
    """
    if given is not None:
        return given.expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise FileNotFoundError("there is no home directory. Set XDG_CACHE_HOME")
    return Path(base) / "gridlstm"
