"""Command lines of directories and options."""

from collections.abc import Sequence
from pathlib import Path

from gridlstm.errors import UserError


def parse(arguments: Sequence[str], usage: str, options: Sequence[str]) -> tuple[list[Path], Path, dict[str, str]]:
    """DIRECTORY … key=value … -> directories, where to write, and the options that are given.

    ``out=DIRECTORY`` is always an option; without it, a single directory is written into.

    Raises:
        UserError: an option is unknown, or there is no directory, or several without a place to write to.
    """
    roots = [Path(a) for a in arguments if "=" not in a or Path(a).exists()]
    given = dict(a.split("=", 1) for a in arguments if Path(a) not in roots)
    if unknown := [key for key in given if key not in ("out", *options)]:
        raise UserError(f"there is no option {unknown[0]}.\n\n{usage}")
    if not roots:
        raise UserError(f"no directory is given.\n\n{usage}")
    if len(roots) > 1 and "out" not in given:
        raise UserError("several directories together need a place of their own: out=DIRECTORY.")
    out = Path(given.pop("out", roots[0]))
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file: give a directory, which may be a new one.")
    return roots, out, given
