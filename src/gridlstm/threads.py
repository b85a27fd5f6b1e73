"""How OpenMP threads wait: a matter of the whole process, decided before torch is imported."""

import os


def wait_briefly() -> None:
    """Lets idle threads spin for some 20 microseconds, then sleep. What the user's environment says goes first.

    GNU OpenMP's own choice is to spin for milliseconds. A sweep is thousands of short parallel regions; with one other
    busy process on each of two cores, its threads wait out one another's time slices: a training step of the default
    task took 920 ms instead of 19. Spinning briefly, it takes 46, and without other processes the same 19
    (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
