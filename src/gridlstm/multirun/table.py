"""Show the progress of a sweep: a live table on a terminal, otherwise a log line for every change."""

import datetime
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

log = logging.getLogger(__name__)

_CLEAR_LINE = "\x1b[2K"
_ESTIMATE_SECONDS = 30.0

_STATES = ("failed", "running", "interrupted", "queued", "waiting", "completed", "skipped")
"""Job states, the most urgent first. A queued job waits for SLURM, a waiting job for a place in the sweep."""
_NOT_BEGUN = ("queued", "waiting")


@dataclass
class Row:
    """State of one job."""

    name: str
    point: str
    """Overrides that differ between jobs."""
    state: str
    """One of ``_STATES``."""
    step: str = ""
    best: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None


def duration(seconds: float | None) -> str:
    """Return H:MM:SS, or "" if unknown."""
    return "" if seconds is None else str(datetime.timedelta(seconds=round(max(seconds, 0))))


def sweep_seconds_left(rows: Sequence[Row], at_once: int) -> float | None:
    """Return the time to the end of the sweep if waiting jobs take as long as started ones; None while unknown."""
    whole = [
        row.seconds + (row.seconds_left or 0.0)
        for row in rows
        if row.state == "completed" or (row.state == "running" and row.seconds_left is not None)
    ]
    running = [row for row in rows if row.state == "running"]
    waiting = sum(row.state == "waiting" for row in rows)
    unknown = any(row.state == "queued" or (row.state == "running" and row.seconds_left is None) for row in rows)
    if not whole or not (running or waiting) or unknown:
        return None
    left = [row.seconds_left or 0.0 for row in running]
    mean = sum(whole) / len(whole)
    # A schedule is at least as long as its longest job, and as the total work divided by the places.
    return max([*left, (sum(left) + waiting * mean) / at_once, mean if waiting else 0.0])


def lines(rows: Sequence[Row], metric: str, seconds_left: float | None, width: int, height: int) -> list[str]:
    """Return at most ``height`` lines of at most ``width`` characters; running and failed jobs are kept first."""
    order = {name: n for n, name in enumerate(_STATES)}
    room = max(height - 3, 1)
    shown = list(rows)
    if len(shown) > room:
        keep = sorted(range(len(rows)), key=lambda i: order[rows[i].state])[:room]
        shown = [rows[i] for i in sorted(keep)]
    # A narrow terminal cuts off the last columns.
    cells = [("job", "state", "step", "time", "ETA", f"best {metric}", "point")]
    for row in shown:
        best = "" if row.best is None else f"{row.best:.4g}"
        seconds = duration(row.seconds) if row.state not in _NOT_BEGUN else ""
        eta = duration(row.seconds_left) if row.state == "running" else ""
        cells.append((row.name, row.state, row.step, seconds, eta, best, row.point))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = ["  ".join(text.ljust(size) for text, size in zip(line, widths, strict=True)) for line in cells]
    if len(shown) < len(rows):
        table.append(f"… and {len(rows) - len(shown)} more")
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in order if state in states)
    table.append(f"{counts}{f'; about {duration(seconds_left)} left' if seconds_left is not None else ''}")
    return [line.rstrip()[:width] for line in table]


class LiveTable:
    """Table of the jobs of a sweep.

    Args:
        metric: monitored metric.
        at_once: number of jobs that run at once.
        stream: terminal for the table; if it is not a terminal, changes of state are logged.
    """

    def __init__(self, metric: str, at_once: int, stream: TextIO | None = None) -> None:
        self.metric = metric
        self.at_once = at_once
        self.stream = stream or sys.stderr
        self._drawn = 0
        self._states: dict[str, str] = {}
        self._estimated = False

    def show(self, rows: Sequence[Row]) -> None:
        """Draw the table again, or log the changes."""
        left = sweep_seconds_left(rows, self.at_once)
        if not self.stream.isatty():
            self._log_changes(rows, left)
            return
        size = shutil.get_terminal_size()
        table = lines(rows, self.metric, left, size.columns - 1, size.lines - 1)
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        rest = "".join(f"{_CLEAR_LINE}\n" for _ in range(self._drawn - len(table)))
        back = f"\x1b[{self._drawn - len(table)}A" if rest else ""
        self.stream.write(up + "".join(f"{_CLEAR_LINE}{line}\n" for line in table) + rest + back)
        self.stream.flush()
        self._drawn = len(table)

    @contextmanager
    def below_the_log(self) -> Iterator[None]:
        """Clear the table before each line of the log in this block, which would otherwise be drawn over."""

        def clear(record: logging.LogRecord) -> bool:
            if self._drawn:
                self.stream.write(f"\x1b[{self._drawn}A\x1b[0J")
                self.stream.flush()
                self._drawn = 0
            return True

        handlers = list(logging.getLogger().handlers)
        for handler in handlers:
            handler.addFilter(clear)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(clear)

    def _log_changes(self, rows: Sequence[Row], left: float | None) -> None:
        for row in rows:
            if self._states.get(row.name, "waiting") != row.state:
                ended = sum(other.state not in (*_NOT_BEGUN, "running") for other in rows)
                best = f", best {self.metric} {row.best:.4g}" if row.best is not None else ""
                took = f" after {duration(row.seconds)}" if row.state in ("completed", "failed", "interrupted") else ""
                log.info(
                    "%s (%s): %s%s%s (%d of %d ended)", row.name, row.point, row.state, took, best, ended, len(rows)
                )
            self._states[row.name] = row.state
        # The first steps of a job say little about its speed.
        known = any(row.state == "completed" or row.seconds >= _ESTIMATE_SECONDS for row in rows)
        if not self._estimated and known and left is not None and left >= _ESTIMATE_SECONDS:
            self._estimated = True
            log.info("about %s left, if waiting jobs take as long as started ones", duration(left))
