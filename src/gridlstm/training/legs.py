"""Legs of a run: files that earlier processes left in its directory."""

import logging
from pathlib import Path
from typing import Any

from gridlstm.files import read_json
from gridlstm.training.intact import LAST, PREVIOUS, check_intact, damage

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"


def last_checkpoint(directory: Path) -> Path | None:
    """Return the last checkpoint of a run directory, or None."""
    paths = (directory / CHECKPOINTS / name for name in (LAST, PREVIOUS))
    return next((path for path in paths if path.exists()), None)


def intact_checkpoint(directory: Path) -> Path | None:
    """Return the last checkpoint of a run directory, or the previous one if it is damaged; None if there is none.

    Raises:
        UserError: both are damaged.
    """
    last = last_checkpoint(directory)
    if last is None or (reason := damage(last)) is None:
        return last
    before = last.with_name(PREVIOUS)
    if last == before or damage(before) is not None:
        check_intact(last)
    log.warning("%s is damaged (%s): the run continues from the previous one, %s", last, reason, before)
    return before


def earlier_result(directory: Path) -> dict[str, Any]:
    """Return the contents of result.json from earlier legs, without status and error; {} if there is none.

    A killed leg could not write its seconds; they are read from progress.json.
    """
    result = read_json(directory / "result.json")
    if result.get("status") == "running" and not result.get("trained_to_end"):
        killed = read_json(directory / "progress.json").get("seconds", 0)
        for name in ("seconds", "fit_seconds"):
            result[name] = round(result.get(name, 0) + killed, 3)
    return {name: value for name, value in result.items() if name not in ("status", "error")}
