"""Origin of a number: commit, versions, device, seed, command."""

import logging
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import gridlstm

_PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")


def commit() -> str:
    """Return the commit of the source tree, with "+changes" if files differ from it; "unknown" outside a checkout."""
    root = Path(gridlstm.__file__).parents[2]
    git = ["git", "-C", str(root)]
    try:
        # An installed wheel may be inside another repository.
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        if Path(top.strip()) != root:
            return "unknown"
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if status.strip() else "")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the packages that affect its numbers."""
    return {
        "python": platform.python_version(),
        "gridlstm": gridlstm.__version__,
        **{package: version(package) for package in _PACKAGES},
    }


def device(used: torch.device) -> str:
    """Return a description of the device that a run used."""
    if used.type == "cuda":
        return torch.cuda.get_device_name(used)
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def command() -> str:
    """Return the command line that started this process."""
    return shlex.join(sys.orig_argv)


def rank() -> int:
    """Return this process's rank from its launcher's variables, before Lightning knows it."""
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_PROCID") or 0)


class RankZeroFilter(logging.Filter):
    """Passes every record of rank zero, but only warnings and errors of other ranks."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or rank() == 0


class EngineFilter(logging.Filter):
    """Hides the engine's log lines from the terminal; train.log contains them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or not record.name.startswith("gridlstm.engine")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe(used: torch.device) -> dict[str, Any]:
    """Return command, commit, device and versions, as in result.json."""
    return {"command": command(), "commit": commit(), "device": device(used), "versions": versions()}
