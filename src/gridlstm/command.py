"""Parts that all commands share: their process's streams and speed, options, one message for an error, exit status."""

import argparse
import ctypes
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

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


class Parser(argparse.ArgumentParser):
    """argparse, for commands that people type beside train.py: ``name=value`` is taken as ``--name value``.

    Args:
        module: below gridlstm, such as "evaluate".
        others: the words that are no options of the command: ``key=value`` of a run, directories, with which ``--out``
            says where files go, or none.
    """

    def __init__(self, module: str, description: str, others: Literal["key=value", "directory", "none"]) -> None:
        super().__init__(
            prog=f"python -m gridlstm.{module}",
            description=description,
            epilog="Each option may also be written as name=value, as for train.py.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._others = others
        if others == "key=value":
            self.add_argument("others", nargs="*", metavar=others, help="options of the run: task.data.batch_size=200")
        elif others == "directory":
            self.add_argument("others", nargs="*", metavar=others, help="a sweep's, or any above run directories")
            self.add_argument(
                "--out",
                type=Path,
                metavar="DIRECTORY",
                help="where files go (the only directory, if one is given)",
            )

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        message = re.sub(r"^argument --([\w-]+): ", lambda found: found[1].replace("-", "_") + " ", message)
        raise UserError(f"{message}. {self.prog} --help names all options.")

    def parse(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the options that are given, by name, and the other words.

        Raises:
            UserError: an option is unknown, given twice, or has a value that it cannot take.
        """
        names = {name for action in self._actions for name in action.option_strings if name.startswith("--")}
        words: list[str] = []
        for word in arguments:
            name, equals, value = word.partition("=")
            option = "--" + name.removeprefix("--").replace("_", "-")
            is_value = words and words[-1] in names
            words.append(f"{option}={value}" if equals and option in names and not is_value else word)
        keys = [word.partition("=")[0] for word in words if word.startswith("--")]
        if twice := [key for key in keys if keys.count(key) > 1]:
            name = twice[0].removeprefix("--").replace("-", "_")
            raise UserError(f"{name} is given more than once: leave one out, or put commas between several values.")
        found = {name: value for name, value in vars(self.parse_intermixed_args(words)).items() if value is not None}
        others: list[str] = found.pop("others", [])
        for word in others:
            if self._others == "key=value" and "=" not in word:
                raise UserError(f"expected key=value, got {word!r}.\n\n{self.format_help()}")
            if self._others == "directory" and "=" in word and not Path(word).exists():
                self.error(f"there is no option {word.partition('=')[0]}")
        return found, others


def whole(text: str) -> int:
    """Return a whole number, the type of an option."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from error


def number(text: str) -> float:
    """Return a number, the type of an option."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def true_or_false(text: str) -> bool:
    """Return true or false, the type of an option."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


def packages(text: str) -> list[str]:
    """Return names that commas part, the type of ``--trust``."""
    return [name for name in text.split(",") if name]


def checkpoint_paths(named: str) -> list[Path]:
    """Return the paths of ``--ckpt A,B,…``; a single one may have commas of its own."""
    paths = [named] if Path(named).expanduser().is_file() else named.split(",")
    return [Path(path).expanduser() for path in paths]


def run_command(parser: Parser, run: Callable[[dict[str, Any], list[str]], None]) -> None:
    """Call ``run`` with the options that the command line gives and its other words.

    An error of the user's is one message and exit status 1, Ctrl-C exit status 130.
    """
    prepare()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # on stderr: stdout is the result's
    arguments = sys.argv[1:]
    if not arguments:
        sys.exit(parser.format_help())
    try:
        if any(a in ("-h", "--help") for a in arguments):
            print(parser.format_help())
        else:
            run(*parser.parse(arguments))
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
