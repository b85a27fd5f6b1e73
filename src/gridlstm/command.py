"""What the commands share: usage, one message for an error, exit status."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gridlstm.errors import UserError
from gridlstm.process import open_streams, prepare


def run_command(usage: str, run: Callable[[list[str]], None]) -> None:
    """Calls ``run`` with the command line's arguments; an error of the user's is one message and exit status 1, and
    Ctrl-C exit status 130."""
    open_streams()
    arguments = sys.argv[1:]
    if not arguments:
        sys.exit(usage)
    try:
        if any(a in ("-h", "--help") for a in arguments):
            print(usage)
        else:
            run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # As in "| head": ends quietly. Not by SIGPIPE, of which a closed connection could die as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}. Files are written to, and read from, where the command says.")
    except KeyboardInterrupt:
        sys.exit(130)


def run_with_options(usage: str, run: Callable[[dict[str, str]], None]) -> None:
    """As ``run_command``, for a command that computes and whose arguments are all ``key=value``."""

    def parsed(arguments: list[str]) -> None:
        prepare()
        logging.basicConfig(level=logging.INFO, format="%(message)s")  # on stderr: stdout is the result's
        if bad := [a for a in arguments if "=" not in a]:
            raise UserError(f"expected key=value, got {bad[0]!r}.\n\n{usage}")
        given = dict(a.split("=", 1) for a in arguments)
        if len(given) < len(arguments):
            keys = [a.split("=", 1)[0] for a in arguments]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{twice} is given more than once: leave one out, or put commas between several values.")
        run(given)

    run_command(usage, parsed)


def checkpoint_paths(named: str) -> list[Path]:
    """The paths of ``ckpt=A,B,…``; a single one may have commas of its own."""
    paths = [named] if Path(named).expanduser().is_file() else named.split(",")
    return [Path(path).expanduser() for path in paths]


def trusted(given: dict[str, str]) -> list[str]:
    """Return the packages of ``trust=A,B,…``, taken out of what is given."""
    return [name for name in given.pop("trust", "").split(",") if name]


def run_on_checkpoint(usage: str, run: Callable[[dict[str, str]], None]) -> None:
    """As ``run_with_options``, for a command that needs ``ckpt=``."""

    def checked(given: dict[str, str]) -> None:
        if "ckpt" not in given:
            raise UserError(f"ckpt must be given.\n\n{usage}")
        run(given)

    run_with_options(usage, checked)
