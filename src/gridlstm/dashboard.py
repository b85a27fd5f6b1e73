"""``python -m gridlstm.dashboard multirun/EXPERIMENT/SWEEP``: a W&B workspace for the runs of sweeps.

Uses wandb-workspaces, W&B's own library.
"""

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from PIL import Image

from gridlstm.command import Parser, run_command, true_or_false
from gridlstm.errors import UserError
from gridlstm.files import read_json, write_text
from gridlstm.report.arguments import places
from gridlstm.report.curves import picture
from gridlstm.report.page import page
from gridlstm.report.runs import Run, find_runs
from gridlstm.report.tables import Table, make_tables
from gridlstm.report.text import markdown, shown
from gridlstm.training.loggers.wandb_account import known_run_id, logged_in, run_id

try:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.workspaces.internal import View
except ImportError as error:
    raise SystemExit("error: the dashboard's package is missing. Run pip install 'gridlstm[dashboard]'") from error

PARSER = Parser(
    "dashboard", "Build a W&B workspace for the runs of sweeps, check it and write workspace.json.", others="directory"
)
PARSER.add_argument(
    "--upload", type=true_or_false, default=False, metavar="true|false",
    help="true: save it to W&B, with the report's tables and pictures as a separate run; needs `wandb login`",
)  # fmt: skip

FILE = "workspace.json"
_MOST_RUNS = 100
_SAMPLES, _STEP, _TIME = "samples", "trainer/global_step", "RelativeTime(Process)"


def build(runs: Sequence[Run], name: str) -> ws.Workspace:
    """Build the workspace: results, learning curves, comparison, parameters, throughput and system of ``runs``.

    Runs are grouped like the rows of the report: by experiment and by all varied options except the seed.

    Raises:
        UserError: if no run was logged to W&B, or the runs belong to several projects.
    """
    logged = [run for run in runs if known_run_id(run.directory) and run.config]
    if not logged:
        raise UserError("none of these runs was logged to W&B. Run them with logger=default or logger=wandb.")
    places = {(run.config.get("logger.wandb.entity"), run.config.get("logger.wandb.project")) for run in logged}
    if len(places) > 1:
        names = ", ".join(sorted(f"{entity or 'your own'}/{project}" for entity, project in places))
        raise UserError(f"these runs belong to several W&B projects: {names}. Give the runs of one project at a time.")
    entity, project = places.pop()
    tables = make_tables(runs)
    parameters = _parameters(tables, logged)
    return ws.Workspace(
        entity=str(entity or ""),
        project=str(project),
        name=name,
        sections=[
            _results(tables, runs),
            _curves(tables, logged),
            _comparison(tables),
            _parameter_section(parameters),
            _throughput(),
            _system(logged),
        ],
        settings=ws.WorkspaceSettings(x_axis=_SAMPLES, max_runs=_MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("ID").isin([known_run_id(run.directory) for run in logged])],
            groupby=[ws.Metric("Group"), *(ws.Config(key) for key in parameters)],
            order=[ws.Ordering(ws.Summary("score"), ascending=tables[0].mode == "min")],
            pinned_columns=["run:displayName", "run:state", "summary:score"],
        ),
    )


def _parameters(tables: Sequence[Table], runs: Sequence[Run]) -> list[str]:
    """Return the varied options as keys of the runs' W&B configuration; for a group, the key that its choice sets."""
    config = {key for run in runs for key in run.config}
    found = ["run.model"]
    for key in (key for table in tables for key in table.varied):
        node = key.rpartition("@")[2]
        candidates = (f"run.{key}", node, f"{node}._target_")
        found += [candidate for candidate in candidates if candidate in config][:1]
    return list(dict.fromkeys(found))


def _results(tables: Sequence[Table], runs: Sequence[Run]) -> ws.Section:
    text = markdown(tables, runs, Path.cwd(), pictures=[])
    return ws.Section(
        name="Results",
        is_open=True,
        panels=[
            wr.MarkdownPanel(markdown=text),
            wr.MediaBrowser(title="Learning curves", media_keys=["learning_curve"]),
        ],
        layout_settings=ws.SectionLayoutSettings(columns=2, rows=1),
    )


def _curves(tables: Sequence[Table], runs: Sequence[Run]) -> ws.Section:
    logged = dict.fromkeys(name for run in runs for name in run.curves)
    panels: list[Any] = []
    for name in dict.fromkeys([*(table.monitor for table in tables), "val/loss"]):
        stages = [stage for stage in ("val", "train") if name.replace("val/", f"{stage}/") in logged]
        lines: list[Any] = [name.replace("val/", f"{stage}/") for stage in stages] or [name]
        for x, axis in ((_SAMPLES, "training samples"), (_STEP, "optimizer steps")):
            panels.append(wr.LinePlot(title=f"{name.removeprefix('val/')} by {axis}", x=x, y=lines, title_x=axis))
    return ws.Section(name="Learning curves", is_open=True, panels=panels, layout_settings=_two_columns())


def _comparison(tables: Sequence[Table]) -> ws.Section:
    monitored = " or ".join(dict.fromkeys(table.monitor for table in tables))
    tests = dict.fromkeys(name for table in tables for name in table.columns if name.startswith("test/"))
    return ws.Section(
        name="Comparison",
        panels=[
            wr.BarPlot(title=f"best {monitored}", metrics=[wr.SummaryMetric("score")]),
            *(wr.BarPlot(title=name, metrics=[wr.SummaryMetric(name)]) for name in tests),
            wr.RunComparer(diff_only="split"),
        ],
        layout_settings=_two_columns(),
    )


def _parameter_section(parameters: Sequence[str]) -> ws.Section:
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in parameters]
    score = wr.SummaryMetric("score")
    return ws.Section(
        name="Parameters",
        panels=[
            wr.ParallelCoordinatesPlot(columns=[*columns, wr.ParallelCoordinatesPlotColumn(score)]),
            wr.ParameterImportancePlot(with_respect_to="score"),
            wr.ScatterPlot(title="score by size", x=wr.SummaryMetric("parameters"), y=score, log_x=True),
        ],
    )


def _throughput() -> ws.Section:
    return ws.Section(
        name="Throughput",
        panels=[
            wr.LinePlot(title="samples by time", x=_TIME, y=[_SAMPLES]),
            wr.LinePlot(title="optimizer steps by time", x=_TIME, y=[_STEP]),
            wr.BarPlot(title="seconds", metrics=[wr.SummaryMetric("seconds")]),
        ],
    )


def _system(runs: Sequence[Run]) -> ws.Section:
    names = ["cpu", "proc.memory.rssMB", "memory_percent"]
    if any(run.config.get("trainer.accelerator") != "cpu" for run in runs):
        names += ["gpu.0.gpu", "gpu.0.memoryAllocated", "gpu.0.powerWatts"]
    return ws.Section(name="System", panels=[wr.LinePlot(x=_TIME, y=[f"system/{name}"], title=name) for name in names])


def _two_columns() -> ws.SectionLayoutSettings:
    return ws.SectionLayoutSettings(columns=2, rows=2)


def write(workspace: ws.Workspace, file: Path) -> None:
    """Write the JSON that W&B would receive, after checking that it reads back as the same workspace.

    Raises:
        UserError: if it reads back differently.
    """
    text = workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
    again = read(text)._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)
    if again != text:
        raise UserError(
            "the workspace does not read back as it was built: this version of wandb-workspaces does not fit. "
            "Install the version in constraints.txt."
        )
    write_text(file, text + "\n")


def read(text: str) -> ws.Workspace:
    """Return the workspace that ``write`` wrote."""
    return ws.Workspace._from_model(View.model_validate_json(text))


def log_report(
    tables: Sequence[Table], runs: Sequence[Run], workspace: ws.Workspace, out: Path, mode: Literal["online", "offline"]
) -> None:
    """Log the report's tables, picture and page as a W&B run; later calls with the same ``out`` continue that run."""
    with wandb.init(
        entity=workspace.entity or None,
        project=workspace.project,
        name=workspace.name,
        group=str(next(run.config["run.group"] for run in runs if run.config)),
        job_type="report",
        id=run_id(out, goes_on=True),
        resume="allow" if mode == "online" else None,
        dir=out,
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    ) as run:
        for table in tables:
            # Each column of a W&B table has one type. Text can show a mean with its range, as in the report.
            rows = [[shown(cell) for cell in row] for row in table.rows]
            run.log({f"report/{table.title}": wandb.Table(columns=list(table.columns), data=rows)})
        curves = Image.open(io.BytesIO(picture(tables)))
        run.log({"report/curves": wandb.Image(curves), "report/page": wandb.Html(page(tables, runs, out))})


def upload(workspace: ws.Workspace, runs: Sequence[Run], out: Path) -> str:
    """Save the workspace and the report in W&B, and return the address. An earlier workspace of ``out`` is replaced.

    Raises:
        UserError: if W&B rejects it or cannot be reached.
    """
    try:
        workspace.entity = workspace.entity or str(wandb.Api().default_entity or "")
        log_report(make_tables(runs), runs, workspace, out, "online")
        workspace.save()
        return str(workspace.url)
    except wandb.errors.Error as error:
        raise UserError(f"W&B did not accept the workspace: {error}. It is saved in {out / FILE}.") from error


def main() -> None:
    """Run the command line."""
    run_command(PARSER, _run)


def _run(given: dict[str, Any], directories: list[str]) -> None:
    roots, out = places(directories, given.get("out"))
    if given["upload"] and not logged_in():
        raise UserError("upload=true needs a W&B account. Run `wandb login`, or remove the option and upload later.")
    runs = find_runs(roots)
    workspace = build(runs, out.resolve().name)
    before = read_json(out / FILE)
    workspace._internal_name, workspace._internal_id = before.get("name", ""), before.get("id", "")
    write(workspace, out / FILE)
    print(f"{out / FILE}: {', '.join(section.name for section in workspace.sections)}")
    if given["upload"]:
        print(upload(workspace, runs, out))
        write(workspace, out / FILE)
    if any(next(run.directory.glob("wandb/offline-run-*"), None) for run in runs):
        where = shlex.join(map(str, roots))
        print(f"upload runs that were logged offline with: find {where} -name 'offline-run-*' -exec wandb sync {{}} +")


if __name__ == "__main__":
    main()
