"""The report command."""

from pathlib import Path

from gridlstm.command import run_command
from gridlstm.files import write_bytes, write_text
from gridlstm.report.arguments import parse
from gridlstm.report.curves import picture
from gridlstm.report.lengths import length_picture
from gridlstm.report.page import page
from gridlstm.report.runs import find_runs
from gridlstm.report.sizes import size_picture
from gridlstm.report.tables import make_tables
from gridlstm.report.text import comma_separated, latex, markdown, not_completed, summary

USAGE = """python -m gridlstm.report DIRECTORY … [out=DIRECTORY]

Reads what sweeps and single runs have left and writes report.md, report.csv, report.tex, curves.png and report.html;
samples_to_solve.png too, against depth and other sizes, where runs of several sizes had a criterion, and
test_lengths.png where tests were broken down by length.

  DIRECTORY   a sweep's, such as multirun/adhoc/2026-01-31_12-00-00, or any other above run directories
  out         where the report goes; the sweep's own directory, if only one is given

Runs that differ by seed only are one row; below the rows stand their seeds, versions and commands. Runs that are
missing, interrupted or failed are named."""


def report(roots: list[Path], out: Path) -> list[str]:
    """Writes the report on all runs below ``roots`` into ``out``.

    Returns:
        What was found: a line on all runs, and one for each that did not complete.

    Raises:
        UserError: a directory is not there or holds no runs.
    """
    runs = find_runs(roots)
    tables = make_tables(runs)
    out.mkdir(parents=True, exist_ok=True)
    drawn = {
        "curves.png": picture(tables),
        "samples_to_solve.png": size_picture(tables),
        "test_lengths.png": length_picture(tables),
    }
    for name, content in drawn.items():
        if content is None:
            (out / name).unlink(missing_ok=True)  # of other runs, of which a report lay here
        else:
            write_bytes(out / name, content)
    pictures = [name for name, content in drawn.items() if content is not None]
    write_text(out / "report.md", markdown(tables, runs, out, pictures))
    write_text(out / "report.csv", "\n".join(comma_separated(table) for table in tables))
    write_text(out / "report.tex", latex(tables))
    write_text(out / "report.html", page(tables, runs, out))
    lost = not_completed(runs, Path.cwd())
    return [summary(runs), *(f"  {name}: {status}. {error}" for name, status, error in lost)]


def main() -> None:
    """The command line."""
    run_command(USAGE, _run)


def _run(arguments: list[str]) -> None:
    roots, out, _ = parse(arguments, USAGE, ())
    print("\n".join(report(roots, out)))
    print(f"{out / 'report.html'}, and report.md, report.csv, report.tex, pictures beside it")


if __name__ == "__main__":
    main()
