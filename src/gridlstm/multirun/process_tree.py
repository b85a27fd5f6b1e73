"""Processes of one job, which end together."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1

_AGAIN = "-- started again --"
"""Line of a console file between the output of two commands."""


class ProcessTree:
    """Command in its own session, with every process that it starts.

    Ctrl-C in a terminal then reaches only the sweep, which stops its jobs in order. If the sweep itself is killed,
    Linux signals the command to end.

    Args:
        command: program and its arguments.
        environment: all environment variables of the command.
        console: file to which its output is appended.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], console: Path) -> None:
        with console.open("ab") as output:
            if output.tell():
                output.write(f"\n{_AGAIN}\n".encode())
                output.flush()
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_prepare,  # safe: this process has no other threads, and _prepare makes only system calls
            )
        self._groups = {self._process.pid}

    def state(self) -> str:
        return "running"

    def ended(self) -> str | None:
        """Return how the command ended, "" for success, or None while it runs."""
        status = self._process.poll()
        if not status:
            return None if status is None else ""
        return f"exit status {status}" if status > 0 else signal.Signals(-status).name

    def interrupt(self) -> None:
        """Ask the command to end. torchrun passes the signal on to its ranks, which have their own sessions.

        Send SIGINT. At SIGTERM, Lightning's ranks notify each other in a collective, and wait forever for a rank that
        is in another collective.
        """
        self._groups |= _groups_below(self._process.pid)
        _signal_group(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """Kill all processes, including processes that the command left behind."""
        self._groups |= _groups_below(self._process.pid)
        for group in self._groups:
            _signal_group(group, signal.SIGKILL)
        self._process.wait()


def last_line(console: Path) -> str:
    """Return the error that a command printed, else its last line, or "". torchrun's own report comes after both."""
    text = console.read_text(errors="replace").rpartition(_AGAIN)[2] if console.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip(" =-")]
    return next((line for line in lines if line.startswith("error: ")), (lines or [""])[-1])


def _groups_below(pid: int) -> set[int]:
    """Return the process groups of all descendants; empty on systems without /proc."""
    parents: dict[int, tuple[int, int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # pid (name, which may contain any character) state ppid pgrp …
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or of another user where /proc hides them
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
        return  # all its processes have ended already


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _prepare() -> None:
    """Set up signals in the new process before the command runs."""
    # Background commands of a shell ignore SIGINT, and so would their children.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # SLURM sends it to all processes of a job that it will requeue. Ours must not end from it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
