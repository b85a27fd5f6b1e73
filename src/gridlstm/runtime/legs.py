"""The legs of a run: what an earlier process left in the directory in which this one goes on."""

from pathlib import Path
from typing import Any

from gridlstm.strict_json import read_json

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


def last_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that a run in this directory goes on from; None where there is none."""
    path = directory / CHECKPOINTS / LAST
    return path if path.exists() else None


def earlier_result(directory: Path) -> dict[str, Any]:
    """What result.json says of the legs before, {} where there is none; without how the last of them ended.

    Of a leg that was killed, which could not write its seconds, progress.json says how long it had trained.
    """
    result = read_json(directory / "result.json")
    if result.get("status") == "running" and not result.get("trained_to_end"):
        killed = read_json(directory / "progress.json").get("seconds", 0)
        for name in ("seconds", "fit_seconds"):
            result[name] = round(result.get(name, 0) + killed, 3)
    return {name: value for name, value in result.items() if name not in ("status", "error")}
