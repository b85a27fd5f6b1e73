"""Command that writes reports on runs."""

from pathlib import Path
from typing import Any

from gridlstm.command import Parser, run_command
from gridlstm.files import write_bytes, write_text
from gridlstm.report.arguments import places
from gridlstm.report.curves import picture
from gridlstm.report.lengths import length_picture
from gridlstm.report.page import page
from gridlstm.report.published_figure import figure_picture
from gridlstm.report.runs import find_runs
from gridlstm.report.sizes import depth_picture, size_picture
from gridlstm.report.tables import make_tables
from gridlstm.report.text import comma_separated, latex, markdown, not_completed, on_other_data, summary

PARSER = Parser(
    "report",
    """Read the results of sweeps and runs, and write report.md, report.csv, report.tex, report.html and curves.png.
Also write samples_to_solve.png (against depth and other sizes) if runs of several sizes had a criterion,
scores_by_depth.png if runs of several depths had none, published_figure.png if the experiment names a published figure,
and test_lengths.png if tests were broken down by length.

Runs that differ only in the seed share a row; the tables below give their seeds, versions and commands. Runs
that are missing, interrupted or failed are listed.""",
    others="directory",
)


def report(roots: list[Path], out: Path) -> list[str]:
    """Write the report on all runs below ``roots`` to ``out``.

    Returns:
        One line on all runs, and one for each run that did not complete or that read other data than the published.

    Raises:
        UserError: a directory does not exist or holds no runs.
    """
    runs = find_runs(roots)
    tables = make_tables(runs)
    out.mkdir(parents=True, exist_ok=True)
    drawn = {
        "curves.png": picture(tables),
        "samples_to_solve.png": size_picture(tables),
        "scores_by_depth.png": depth_picture(tables),
        "published_figure.png": figure_picture(tables),
        "test_lengths.png": length_picture(tables),
    }
    for name, content in drawn.items():
        if content is None:
            (out / name).unlink(missing_ok=True)  # left by an earlier report on other runs
        else:
            write_bytes(out / name, content)
    pictures = [name for name, content in drawn.items() if content is not None]
    write_text(out / "report.md", markdown(tables, runs, out, pictures))
    write_text(out / "report.csv", "\n".join(comma_separated(table) for table in tables))
    write_text(out / "report.tex", latex(tables))
    write_text(out / "report.html", page(tables, runs, out))
    lost = not_completed(runs, Path.cwd())
    others = on_other_data(runs, Path.cwd())
    return [
        summary(runs),
        *(f"  {name}: {status}. {error}" for name, status, error in lost),
        *(f"  {name}: on other data than the published: {files}" for name, files in others),
    ]


def main() -> None:
    """Run the report command."""
    run_command(PARSER, _run)


def _run(given: dict[str, Any], directories: list[str]) -> None:
    roots, out = places(directories, given.get("out"))
    print("\n".join(report(roots, out)))
    print(f"{out / 'report.html'}, and report.md, report.csv, report.tex, pictures beside it")


if __name__ == "__main__":
    main()
