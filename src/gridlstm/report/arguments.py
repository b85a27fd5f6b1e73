"""Parse directories on the command line."""

from collections.abc import Sequence
from pathlib import Path

from gridlstm.errors import UserError
from gridlstm.files import writable


def places(directories: Sequence[str], out: Path | None) -> tuple[list[Path], Path]:
    """Return the given directories and the output directory, which defaults to the only one given.

    Raises:
        UserError: no directory is given, several are given without an output directory, or it cannot be written.
    """
    if not directories:
        raise UserError(
            "no directory is given. Give the directory of a sweep, such as multirun/adhoc/2026-01-31_12-00-00."
        )
    roots = [Path(name) for name in directories]
    if len(roots) > 1 and out is None:
        raise UserError("a report on several directories needs an output directory. Add out=DIRECTORY.")
    return roots, writable(out or roots[0])
