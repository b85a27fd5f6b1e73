"""What the commands share: the streams and the speed of their process, usage, one message for an error, exit status."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gridlstm.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare() -> None:
    """Set what our commands ask of their process: standard streams, and speed. Results do not depend on it.

    What the user's environment says of either goes first: OMP_WAIT_POLICY or GOMP_SPINCOUNT, and MALLOC_… or
    GLIBC_TUNABLES.
    """
    open_streams()
    _wait_briefly()
    _keep_memory()


def open_streams() -> None:
    """Open the null device for standard streams that are closed, as those of some daemons are.

    Without one, what asks a stream whether it is a terminal fails, and the next file that is opened takes its number,
    into which a library of C then writes its messages.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which has this number, the lowest free one
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode))


def _wait_briefly() -> None:
    """Lets idle threads spin for some 20 microseconds, then sleep.

    GNU OpenMP's own choice is to spin for milliseconds. A sweep is thousands of short parallel regions; with one other
    busy process on each of two cores, its threads wait out one another's time slices: a training step of the default
    task took 920 ms instead of 19. Spinning briefly, it takes 46, and without other processes the same 19
    (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _keep_memory() -> None:
    """Has freed memory stay with the process instead of going back to the system.

    By default glibc gives every large tensor back when it is freed, and the next step has all its pages made and
    zeroed anew: 5 to 14 % of a step of 6 layers of 1,000 units (docs/performance.md).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


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
