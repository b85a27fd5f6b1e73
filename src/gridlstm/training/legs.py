"""The legs of a run: what an earlier process left in the directory in which this one goes on."""

import logging
from pathlib import Path
from typing import Any

from gridlstm.files import read_json
from gridlstm.training.intact import LAST, PREVIOUS, check_intact, damage

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


def last_checkpoint(directory: Path) -> Path | None:
    """Return the last checkpoint of a run directory; None where there is none."""
    paths = (directory / CHECKPOINTS / name for name in (LAST, PREVIOUS))
    return next((path for path in paths if path.exists()), None)


def intact_checkpoint(directory: Path) -> Path | None:
    """Return the last checkpoint of a run directory, the one before if that is damaged; None where there is none.

    Raises:
        UserError: both are damaged.
    """
    last = last_checkpoint(directory)
    if last is None or (reason := damage(last)) is None:
        return last
    before = last.with_name(PREVIOUS)
    if last == before or damage(before) is not None:
        check_intact(last)
    log.warning("%s is damaged (%s): the run continues from the one before, %s", last, reason, before)
    return before


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
