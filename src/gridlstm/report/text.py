"""Format tables as Markdown, CSV and LaTeX."""

import os
from collections.abc import Sequence
from pathlib import Path

from gridlstm.files import to_csv
from gridlstm.report.beside import beside
from gridlstm.report.runs import Run
from gridlstm.report.tables import Cell, Spread, Table, evidence, which_seeds

_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
    }
)


def shown(cell: Cell) -> str:
    """Format a cell: "mean (min to max)" of a metric over seeds; four digits, or all digits of large numbers."""
    if cell is None:
        return ""
    if isinstance(cell, Spread):
        return shown(cell.mean) + (f" ({shown(cell.min)} to {shown(cell.max)})" if cell.min != cell.max else "")
    if isinstance(cell, int):
        return f"{cell:,}"
    return (f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}") if isinstance(cell, float) else cell


def markdown(tables: Sequence[Table], runs: Sequence[Run], directory: Path, pictures: Sequence[str]) -> str:
    """Return pictures, tables, their evidence, and the runs that did not complete with their errors, as Markdown.

    Paths of runs are relative to ``directory``.
    """
    parts = ["# Report\n", f"{summary(runs)}\n", *(f"![{Path(name).stem}]({name})\n" for name in pictures)]
    for table in tables:
        parts.append(f"## {table.title}\n")
        parts.append(f"Mean over seeds (min to max); {'larger' if table.mode == 'max' else 'smaller'} is better.\n")
        if "solved" in table.columns:
            parts.append("Samples to solve: over the runs that met their criterion, whose number is in a column.\n")
        parts.append(_markdown_table(table.columns, [[shown(cell) for cell in row] for row in table.rows]))
        for small in beside(table):
            rows = [[shown(cell) for cell in row] for row in small.rows]
            parts += [f"### {small.title}\n", _markdown_table(small.columns, rows)]
        proof = evidence(table)
        rows = [[*map(shown, cells), f"`{command}`" if command else ""] for *cells, command in proof.rows]
        parts += [f"### {proof.title}\n", _markdown_table(proof.columns, rows)]
    if lost := not_completed(runs, directory):
        parts.append("## Not completed\n")
        parts += [f"* `{name}` **{status}** {error}" for name, status, error in lost]
    if others := on_other_data(runs, directory):
        parts.append("\n## Other data\n")
        parts.append("These runs read files that are not the published ones. Published numbers do not apply to them.\n")
        parts += [f"* `{name}`: {files}" for name, files in others]
    return "\n".join(parts).rstrip() + "\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in lines) + "\n"


def comma_separated(table: Table) -> str:
    """Format a table as CSV in full precision; a metric over seeds has three columns, and the last lists the seeds."""
    spread = [any(isinstance(row[i], Spread) for row in table.rows) for i in range(len(table.columns))]
    columns = zip(table.columns, spread, strict=True)
    names = [c for name, wide in columns for c in ([name, f"{name} min", f"{name} max"] if wide else [name])]
    lines: list[list[Cell]] = [[*names, "which seeds"]]
    for row, group in zip(table.rows, table.groups, strict=True):
        cells: list[Cell] = []
        for cell, wide in zip(row, spread, strict=True):
            cells += list(cell) if isinstance(cell, Spread) else [cell] * (3 if wide else 1)
        lines.append([*cells, which_seeds(group.completed)])
    return to_csv(lines)


def latex(tables: Sequence[Table]) -> str:
    """Return a tabular for every table, without device and commit; it needs the LaTeX package booktabs."""
    parts = []
    for table in tables:
        kept = [i for i, name in enumerate(table.columns) if name not in ("device", "commit", "not completed")]
        numbers = "".join("l" if isinstance(table.rows[0][i], str) else "r" for i in kept)
        rows = [[shown(row[i]) for i in kept] for row in table.rows]
        parts.append(_tabular(numbers, [table.columns[i] for i in kept], rows))
        for small in beside(table):
            rows = [[shown(cell) for cell in row] for row in small.rows]
            parts.append(f"% {small.title}\n" + _tabular("l" * len(small.columns), small.columns, rows))
    return "\n".join(parts)


def _tabular(alignment: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in [columns, *rows]]
    begin, end = rf"\begin{{tabular}}{{{alignment}}}", "\\end{tabular}\n"
    return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", end])


def relative(path: Path, directory: Path) -> str:
    """Return a path relative to ``directory``, for a link."""
    return Path(os.path.relpath(path, directory)).as_posix()


def summary(runs: Sequence[Run]) -> str:
    """Return the number of runs by status."""
    statuses = [run.status for run in runs]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(sorted(statuses)))
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {counts}."


def not_completed(runs: Sequence[Run], directory: Path) -> list[tuple[str, str, str]]:
    """Return (path relative to ``directory``, status, known reason) of every run without a complete result."""
    reasons = {"missing": "it never started, or left no result.json", "running or killed": "result.json says running"}
    return [
        (relative(run.directory, directory), run.status, _first_line(run.result.get("error", reasons.get(run.status))))
        for run in runs
        if run.status != "completed"
    ]


def on_other_data(runs: Sequence[Run], directory: Path) -> list[tuple[str, str]]:
    """Return (path relative to ``directory``, file names) of every run with files that are not the published ones."""
    return [
        (relative(run.directory, directory), ", ".join(files))
        for run in runs
        if (files := run.result.get("foreign_files"))
    ]


def _first_line(text: object) -> str:
    return str(text or "").partition("\n")[0]
