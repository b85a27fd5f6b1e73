"""Streams, how threads wait and how memory is kept: matters of the whole process, decided before torch is imported."""

import ctypes
import os
import sys

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
