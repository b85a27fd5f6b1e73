"""One job's processes, which end together."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class ProcessTree:
    """A command in a session of its own, with all that it starts.

    A session of its own, so that a terminal's Ctrl-C reaches the sweep alone, which then ends its jobs in order. Should
    the sweep itself be killed, Linux tells the command to end.

    Args:
        command: the program and its arguments.
        environment: all of its variables.
        console: what it prints is appended to this file.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], console: Path) -> None:
        with console.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_prepare,  # after the fork of a process without other threads; nothing but system calls
            )
        self._groups = {self._process.pid}

    def state(self) -> str:
        return "running"

    def ended(self) -> str | None:
        """How it ended, in words, "" for well; None while it runs."""
        status = self._process.poll()
        if not status:
            return None if status is None else ""
        return f"exit status {status}" if status > 0 else signal.Signals(-status).name

    def interrupt(self) -> None:
        """Asks the command to end. Torchrun passes that on to its ranks, which are sessions of their own.

        By SIGINT: at SIGTERM, Lightning's ranks tell one another in a collective, and wait for ever for a rank that is
        in another one.
        """
        self._groups |= _groups_below(self._process.pid)
        _signal_group(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """Ends everything at once, also what the command has left behind."""
        self._groups |= _groups_below(self._process.pid)
        for group in self._groups:
            _signal_group(group, signal.SIGKILL)
        self._process.wait()


def last_line(console: Path) -> str:
    """What a command printed last; "" where it printed nothing."""
    text = console.read_text(errors="replace") if console.exists() else ""
    return ([line.strip() for line in text.splitlines() if line.strip()] or [""])[-1]


def _groups_below(pid: int) -> set[int]:
    """Process groups of all descendants; on systems without /proc none are found."""
    parents: dict[int, tuple[int, int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # pid (name, which may hold anything) state ppid pgrp …
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        parents[int(directory.name)] = (int(fields[1]), int(fields[2]))
    found: set[int] = set()
    level = {pid}
    while level:
        level = {child for child, (parent, _) in parents.items() if parent in level}
        found |= {parents[child][1] for child in level}
    return found


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # all of it has ended: what was wanted


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _prepare() -> None:
    """In the new process, before the command."""
    # What a shell starts in the background ignores SIGINT, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # SLURM tells all processes of a job by it that the job is to be requeued. It would end ours before they must.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
