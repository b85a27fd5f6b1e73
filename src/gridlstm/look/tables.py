"""Tables and pictures on disk, whole or not there."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gridlstm.atomic import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file; numbers at full precision, None as an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, out.getvalue())


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a PNG."""
    out = io.BytesIO()
    figure.savefig(out, dpi=110, format="png")
    write_bytes(path, out.getvalue())
