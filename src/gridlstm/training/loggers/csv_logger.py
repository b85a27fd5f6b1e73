"""Write metrics.csv: one row for each logged step, kept when the run resumes."""

import csv
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from gridlstm.errors import UserError
from gridlstm.files import write_csv


class CSVLogger(Logger):
    """Writes all metrics of one step to one row of one file.

    Lightning's own logger deletes the file when an interrupted run resumes. This one reads it, and drops only rows
    after the checkpoint from which training continues. A test belongs to the step of its weights and drops no rows.

    Args:
        path: path of the file. It is rewritten as a whole and atomically.
        every_seconds: shortest time between writes, except after a validation, which is always written because the
            checkpoint is too.
    """

    def __init__(self, path: str, every_seconds: float = 5.0) -> None:
        super().__init__()
        self.path = Path(path)
        self.every_seconds = every_seconds
        self._rows: list[dict[str, Any]] = _read(self.path)
        self._written = time.monotonic()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def start_over(self) -> None:
        """Remove the rows of an earlier training."""
        self._rows = []
        self.path.unlink(missing_ok=True)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml in the run directory records the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None, "every row belongs to a step"
        if not all(name.startswith("test/") for name in metrics):
            self._rows = [row for row in self._rows if int(row["step"]) <= step]
        rows = {int(row["step"]): row for row in self._rows}
        rows.setdefault(step, {"step": step}).update(metrics)
        self._rows = [rows[key] for key in sorted(rows)]
        validated = any(name.startswith("val/") for name in metrics)
        if validated or time.monotonic() - self._written >= self.every_seconds:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        write_csv(self.path, [columns, *([row.get(name) for name in columns] for row in self._rows)])
        self._written = time.monotonic()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: value for name, value in row.items() if value != ""} for row in csv.DictReader(file)]
        for row in rows:
            int(row["step"])
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged, and the run adds to it: {error!r}. Restore it, or move it away."
        ) from error
    return rows
