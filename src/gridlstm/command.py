"""Parts that all commands share: standard streams, process tuning, options, error messages and exit status."""

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

from gridlstm import machine
from gridlstm.errors import UserError, did_you_mean

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare() -> None:
    """Prepare the process of a command: standard streams, and settings that change speed but no result.

    The user's environment has priority: OMP_WAIT_POLICY or GOMP_SPINCOUNT, and MALLOC_… or GLIBC_TUNABLES.
    """
    open_streams()
    _wait_briefly()
    _keep_memory()
    _limit_threads()


def open_streams() -> None:
    """Open the null device for closed standard streams, as some daemons have.

    Otherwise terminal checks fail, and the next opened file takes the stream's number, so that C libraries write their
    messages into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # open takes the lowest free number: this one
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode))


def _wait_briefly() -> None:
    """Let idle OpenMP threads spin for about 20 microseconds, then sleep.

    By default, GNU OpenMP spins for milliseconds. A sweep consists of thousands of short parallel regions. With one
    other busy process on each of two cores, its threads wait out one another's time slices: a training step of the
    default task took 920 ms instead of 19. With brief spinning it takes 46 ms, and still 19 without other processes
    (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _keep_memory() -> None:
    """Keep freed memory in the process instead of returning it to the system.

    By default, glibc returns every large tensor when it is freed, and the system makes and zeroes its pages again in
    the next step: 5 to 14 % of a step of 6 layers of 1,000 units (docs/results/speed.md).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never


def _limit_threads() -> None:
    """Start no more threads than a container's share of the cores: PyTorch would start one for each core."""
    if "OMP_NUM_THREADS" not in os.environ and (cores := machine.cores()) < machine.shown_cores():
        import torch  # takes seconds, so only in such a container

        torch.set_num_threads(cores)


class Parser(argparse.ArgumentParser):
    """argparse that accepts ``name=value`` for ``--name value``, as train.py does.

    Args:
        module: name below gridlstm, such as "evaluate".
        others: words accepted besides options: ``key=value`` options of a run, directories (adds ``--out``), sentences,
            or none.
    """

    def __init__(
        self, module: str, description: str, others: Literal["key=value", "directory", "sentence", "none"]
    ) -> None:
        super().__init__(
            prog=f"python -m gridlstm.{module}",
            description=description,
            epilog="Each option can also be written as name=value, as for train.py.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._others = others
        if others == "key=value":
            self.add_argument("others", nargs="*", metavar=others, help="options of the run: task.data.batch_size=200")
        elif others == "sentence":
            self.add_argument("others", nargs="*", metavar=others, help="text to translate, in quotes")
        elif others == "directory":
            self.add_argument("others", nargs="*", metavar=others, help="a sweep, or any directory that contains runs")
            self.add_argument(
                "--out",
                type=Path,
                metavar="DIRECTORY",
                help="directory to write files to (the given directory, if it is the only one)",
            )

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        message = re.sub(r"^argument --([\w-]+): ", lambda found: found[1].replace("-", "_") + " ", message)
        raise UserError(f"{message}. See {self.prog} --help for all options.")

    def parse(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the given options by name, and the other words.

        Raises:
            UserError: if an option is unknown, repeated, or has an invalid value.
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
            raise UserError(f"{name} is given more than once. Give it once, with commas between several values.")
        found = {name: value for name, value in vars(self.parse_intermixed_args(words)).items() if value is not None}
        others: list[str] = found.pop("others", [])
        for word in others:
            if self._others == "key=value" and "=" not in word:
                raise UserError(f"expected key=value, got {word!r}.\n\n{self.format_help()}")
            if self._others == "directory" and "=" in word and not Path(word).exists():
                self.error(f"there is no option {word.partition('=')[0]}")
            # Text may contain "=", but text that looks like an option is more likely a misspelt one.
            if self._others == "sentence" and re.fullmatch(r"(?!data_dir=)[a-z_]+=\S*", word):
                name = word.partition("=")[0]
                hint = did_you_mean(name, (each.removeprefix("--").replace("-", "_") for each in names))
                self.error(f"there is no option {name}.{hint} To translate {word!r}, pass it through standard input")
        return found, others


def whole(text: str) -> int:
    """Return the value of an option as a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from error


def from_one(most: int | None = None) -> Callable[[str], int]:
    """Return a function that returns the value of an option as a whole number from 1 to ``most``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < 1 or (most is not None and int(text) > most):
            above = "" if most is None else f" and at most {most:,}"
            raise argparse.ArgumentTypeError(f"must be a whole number of at least 1{above}, got {text!r}")
        return int(text)

    return parse


def number(text: str) -> float:
    """Return the value of an option as a number."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def numbers(text: str) -> list[float]:
    """Return the comma-separated value of an option as numbers."""
    return [number(part) for part in text.split(",")]


def true_or_false(text: str) -> bool:
    """Return the value of an option as a boolean."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


def device_at_hand(text: str) -> str:
    """Return the value of an option as a device: cpu, or cuda if torch finds a GPU."""
    import torch

    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            "cuda cannot be used: torch finds no GPU here. Run the command on a machine with a GPU, or give cpu"
        )
    return text


def packages(text: str) -> list[str]:
    """Return the comma-separated names of ``--trust``."""
    return [name for name in text.split(",") if name]


def checkpoint_paths(named: str) -> list[Path]:
    """Return the paths of ``--ckpt A,B,…``; the path of a single file or directory may contain commas."""
    paths = [named] if Path(named).expanduser().exists() else named.split(",")
    return [Path(path).expanduser() for path in paths]


def is_unknown_home(error: RuntimeError) -> bool:
    """Return True for the error of ``Path.expanduser`` for the ~ of an unknown user."""
    return "home directory" in str(error)


def run_command(parser: Parser, run: Callable[[dict[str, Any], list[str]], None]) -> None:
    """Call ``run`` with the options and the other words of the command line.

    Print a user error as one message and exit with status 1; exit with status 130 on Ctrl-C.
    """
    prepare()
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # on stderr: stdout is for the result
    arguments = sys.argv[1:]
    if not arguments:
        sys.exit(parser.format_help())
    try:
        if any(a in ("-h", "--help") for a in arguments):
            print(parser.format_help())
        else:
            run(*parser.parse(arguments))
        sys.stdout.flush()
    except RuntimeError as error:
        if not is_unknown_home(error):
            raise
        sys.exit(f"error: {error} Write the path without ~.")
    except BrokenPipeError:
        # Exit quietly, as in "| head". The SIGPIPE signal cannot be used, because a closed connection also raises it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}. Check the paths of the command line.")
    except KeyboardInterrupt:
        sys.exit(130)
