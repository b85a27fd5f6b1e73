"""Command lines of directories."""

from collections.abc import Sequence
from pathlib import Path

from gridlstm.errors import UserError
from gridlstm.files import writable


def places(directories: Sequence[str], out: Path | None) -> tuple[list[Path], Path]:
    """Return the directories that are given, and where to write: the only one, where nothing else is said.

    Raises:
        UserError: there is no directory, or several without a place to write to, or one that cannot be written.
    """
    if not directories:
        raise UserError("no directory is given. Expected a sweep's, such as multirun/adhoc/2026-01-31_12-00-00.")
    roots = [Path(name) for name in directories]
    if len(roots) > 1 and out is None:
        raise UserError("several directories together need a place of their own: out=DIRECTORY.")
    return roots, writable(out or roots[0])
