"""Command lines of directories and options."""

import os
from collections.abc import Sequence
from pathlib import Path

from gridlstm.errors import UserError


def parse(arguments: Sequence[str], usage: str, options: Sequence[str]) -> tuple[list[Path], Path, dict[str, str]]:
    """DIRECTORY … key=value … -> directories, where to write, and the options that are given.

    ``out=DIRECTORY`` is always an option; without it, a single directory is written into.

    Raises:
        UserError: an option is unknown or given twice, there is no directory, or several without a place to write to,
            or one that cannot be written.
    """
    roots = [Path(a) for a in arguments if "=" not in a or Path(a).exists()]
    pairs = [a.split("=", 1) for a in arguments if Path(a) not in roots]
    keys = [key for key, _ in pairs]
    if unknown := [key for key in keys if key not in ("out", *options)]:
        raise UserError(f"there is no option {unknown[0]}.\n\n{usage}")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{twice[0]} is given more than once: leave one out.")
    if not roots:
        raise UserError(f"no directory is given.\n\n{usage}")
    given = dict(pairs)
    if len(roots) > 1 and "out" not in given:
        raise UserError("several directories together need a place of their own: out=DIRECTORY.")
    return roots, writable(Path(given.pop("out", roots[0]))), given


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
