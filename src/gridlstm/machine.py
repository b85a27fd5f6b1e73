"""The cores and the memory that this process may use: the machine's, or fewer in a container with limits.

Docker's --cpus and --memory, Kubernetes and SLURM limit a control group. Its cores are a share of processor time, which
the process does not see in its affinity: PyTorch would start a thread for each core of the machine.
"""

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cores(groups: Path = _GROUPS, root: Path = _ROOT) -> int:
    """Return the number of cores that this process may use, at least 1.

    Args:
        groups: file with the control groups of this process.
        root: directory where they are mounted.
    """
    shares = [shown_cores()]
    for directory in _directories("cpu", groups, root):
        if (limit := _words(directory / "cpu.max")) is None:  # of version 2; version 1 has two files
            quota, period = (_words(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            limit = [*(quota or []), *(period or [])]
        match limit:
            case [quota_us, period_us] if quota_us.isdigit() and period_us.isdigit() and int(period_us) > 0:
                shares.append(int(quota_us) // int(period_us))
    return max(1, min(shares))


def shown_cores() -> int:
    """Return the number of cores on which this process may run, whatever its share of their time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(groups: Path = _GROUPS, root: Path = _ROOT) -> int:
    """Return the bytes of memory that this process may use. Arguments as for ``cores``."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for directory in _directories("memory", groups, root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            match _words(directory / name):
                case [limit] if limit.isdigit():
                    limits.append(int(limit))
    return min(limits)


def _directories(controller: str, groups: Path, root: Path) -> Iterator[Path]:
    """Yield the directory of this process's group for a controller, and those of the groups around it.

    A container may see only its own group, at the root, under the name that the group has outside.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / controller if controllers else root
        inside = mounted / path.lstrip("/")
        yield from (place for place in (inside, *inside.parents) if place.is_relative_to(mounted))


def _words(file: Path) -> list[str] | None:
    """Return the words of a file, or None if it cannot be read."""
    try:
        return file.read_text().split()
    except OSError:
        return None
