"""Write report.html, a single file that a browser opens from disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gridlstm.files import to_json
from gridlstm.report.beside import beside
from gridlstm.report.curves import thinned
from gridlstm.report.runs import Run
from gridlstm.report.tables import Cell, Spread, Table, evidence
from gridlstm.report.text import not_completed, on_other_data, relative, shown, summary

_TEMPLATE = Path(__file__).with_name("page.html")


def page(tables: Sequence[Table], runs: Sequence[Run], directory: Path) -> str:
    """Return the page; its links to the runs are relative to ``directory``."""

    def link(run: Run) -> str | None:
        config = run.directory / "config.yaml"
        return relative(config, directory) if config.exists() else None

    content = {
        "summary": summary(runs),
        "lost": [
            {"name": name, "status": status, "error": error} for name, status, error in not_completed(runs, directory)
        ],
        "other": [{"name": name, "files": files} for name, files in on_other_data(runs, directory)],
        "tables": [
            {
                "title": table.title,
                "monitor": table.monitor,
                "mode": table.mode,
                "columns": table.columns,
                "rows": [[_cell(cell) for cell in row] for row in table.rows],
                "beside": [
                    small._asdict() | {"rows": [[shown(cell) for cell in row] for row in small.rows]}
                    for small in (*beside(table), evidence(table))
                ],
                "groups": [
                    {
                        "label": group.label,
                        "runs": [
                            {
                                "name": run.directory.name,
                                "seed": str(run.seed),
                                "status": run.status,
                                "config": link(run),
                                "curves": {name: thinned(curve) for name, curve in run.curves.items()},
                            }
                            for run in group.runs
                        ],
                    }
                    for group in table.groups
                ],
            }
            for table in tables
        ],
    }
    # "</script" would end the script that holds the data, and "<!--" would make its end part of the data.
    data = to_json(content, separators=(",", ":")).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace("@@DATA@@", data)


def _cell(cell: Cell) -> dict[str, Any]:
    """Return the text of a cell and a value to sort by."""
    return {"text": shown(cell), "value": cell.mean if isinstance(cell, Spread) else cell}
