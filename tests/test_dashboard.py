"""The W&B workspace of a sweep is built offline from real runs, and saved to a local server."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from tests.conftest import PATIENCE, python
from tests.wandb_records import read_back
from tests.wandb_server import server

pytest.importorskip("wandb_workspaces")

from gridlstm.dashboard import FILE, _parameters, build, log_report, read, write
from gridlstm.errors import UserError
from gridlstm.report.runs import Run, find_runs
from gridlstm.report.tables import Table, make_tables
from gridlstm.training.job import run_job

POINTS = [("grid2d", 1, 0.01), ("grid2d", 2, 0.01), ("stacked_lstm", 1, 0.02)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, job_in: Callable[..., DictConfig]) -> Path:
    """Train three runs of two models, logged to W&B offline, and plan a fourth job that never starts."""
    root = tmp_path_factory.mktemp("sweep")
    plan = []
    for number, (model, seed, lr) in enumerate(POINTS):
        name = f"{number}-memorization-{model}-s{seed}"
        options = [f"seed={seed}", f"optimizer.lr={lr}"]
        plan.append({"number": number, "name": name, "overrides": [f"model={model}", *options]})
        logger = ["logger=[csv,wandb]", "logger.wandb.mode=offline", f"run.name={name}"]
        run_job(job_in(root, *options, *logger, model=model, directory=name, picture=True))
    plan.append({"number": 3, "name": "3-memorization-gone-s1", "overrides": ["model=gone", "seed=1"]})
    (root / "sweep.json").write_text(json.dumps({"jobs": plan}))
    return root


def recorded(root: Path) -> tuple[set[str], set[str], dict[str, Any], dict[str, str]]:
    """Return wandb's records of a sweep: keys of the history and of the summary, configuration, run ids by name."""
    history, summary, config, ids = set(), set(), {}, {}
    for file in root.glob("*/wandb/offline-run-*/run-*.wandb"):
        found = read_back(file)
        history |= {i.nested_key[0] if i.nested_key else i.key for r in found["history"] for i in r.history.item}
        summary |= {i.nested_key[0] if i.nested_key else i.key for r in found["summary"] for i in r.summary.update}
        for record in found["config"]:
            config |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.config.update}
        ids[found["run"][0].run.display_name] = found["run"][0].run.run_id
    return history, summary, config, ids


def panels(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_workspace_refers_only_to_logged_keys(sweep: Path, tmp_path: Path) -> None:
    history, summary, config, ids = recorded(sweep)
    assert set(ids) == {path.name for path in sweep.iterdir() if path.is_dir()}, "a run is named after its directory"
    workspace = build(find_runs([sweep]), "one")
    write(workspace, tmp_path / FILE)
    spec = json.loads((tmp_path / FILE).read_text())
    assert (spec["displayName"], spec["project"]) == ("one", "gridlstm")
    sections = panels(spec)
    assert list(sections) == ["Results", "Learning curves", "Comparison", "Parameters", "Throughput", "System"]

    def in_config(key: str) -> bool:
        node: Any = {name: {"value": value} for name, value in config.items()}
        for part in key.split("."):
            node = node[part]
        return not isinstance(node, dict)

    named = 0
    for panel in (panel for name, section in sections.items() if name != "System" for panel in section):
        content = panel["config"]
        for metric in content.get("metrics", []):
            known = summary if metric.startswith("summary_metrics.") else history
            assert metric.removeprefix("summary_metrics.") in known
            named += 1
        if panel["viewType"] == "Run History Line Plot":
            assert content["xAxis"] in history
        accessors = [column["accessor"] for column in content.get("columns", [])]
        for accessor in [*accessors, *(content[k] for k in ("xAxis", "yAxis") if panel["viewType"] == "Scatter Plot")]:
            kind, _, key = accessor.partition(":")
            assert in_config(key) if kind == "config" else key in summary
        assert set(content.get("mediaKeys", [])) <= history
    assert named >= 10
    runset = spec["spec"]["section"]["runSets"][0]
    assert set(runset["filters"]["filters"][0]["value"]) == set(ids.values())
    assert [key["name"] for key in runset["grouping"]] == ["group", "run.value.model", "optimizer.value.lr"]
    assert all(in_config(key["name"]) for key in runset["grouping"][1:])
    assert "val/accuracy" in sections["Learning curves"][0]["config"]["metrics"]
    assert "3-memorization-gone-s1` **missing**" in sections["Results"][0]["config"]["value"]


def test_an_option_that_the_first_run_lacks_is_a_parameter() -> None:
    runs = [Run(Path("0"), {"run.model": "rnn"}), Run(Path("1"), {"run.model": "grid2d", "model.priority": "depth"})]
    table = Table("val/loss", "min", ("model", "model.priority"), (), (), ())
    assert _parameters([table], runs) == ["run.model", "model.priority"]


def test_workspace_file_reads_back(sweep: Path, tmp_path: Path) -> None:
    workspace = build(find_runs([sweep]), "one")
    write(workspace, tmp_path / FILE)
    again = read((tmp_path / FILE).read_text())
    assert [section.name for section in again.sections] == [section.name for section in workspace.sections]
    assert again.runset_settings == workspace.runset_settings
    assert not list(tmp_path.glob("*.part"))


def test_report_is_logged_as_a_separate_run(sweep: Path, tmp_path: Path) -> None:
    runs = find_runs([sweep])
    log_report(make_tables(runs), runs, build(runs, "one"), tmp_path, "offline")
    (file,) = (tmp_path / "wandb" / "latest-run").glob("run-*.wandb")
    found = read_back(file)
    run = found["run"][0].run
    assert (run.display_name, run.job_type, run.run_group) == ("one", "report", "test")
    kinds = {
        i.nested_key[0]: json.loads(i.value_json)
        for record in found["history"]
        for i in record.history.item
        if i.nested_key[1:] == ["_type"]
    }
    assert kinds == {"report/val/accuracy": "table-file", "report/curves": "image-file", "report/page": "html-file"}
    (table,) = (tmp_path / "wandb" / "latest-run" / "files").glob("media/table/**/*.json")
    content = json.loads(table.read_text())
    assert content["columns"][:2] == ["model", "optimizer.lr"]
    assert {tuple(row[:2]) for row in content["data"]} == {("grid2d", "0.01"), ("stacked_lstm", "0.02"), ("gone", "")}
    assert [run.directory.name for run in find_runs([sweep])] == [run.directory.name for run in runs]


def dashboard(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(
        [python(), "-m", "gridlstm.dashboard", *arguments],
        env={**clean, "NETRC": "/dev/null", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_second_upload_replaces_the_workspace_and_the_report(sweep: Path, tmp_path: Path) -> None:
    with server() as wandb_server:
        account = {
            "WANDB_BASE_URL": wandb_server.url,
            "WANDB_API_KEY": 40 * "a",
            "WANDB_ERROR_REPORTING": "false",
        }
        for _ in range(2):
            done = dashboard(str(sweep), f"out={tmp_path}", "upload=true", **account)
            assert done.returncode == 0, done.stderr
        assert f"{wandb_server.url}/me/gridlstm?nw=saved" in done.stdout
        first, second = wandb_server.of("UpsertView2")
        assert json.loads(second["spec"]) == json.loads((tmp_path / FILE).read_text())["spec"]
        assert (first["entityName"], first["projectName"], "id" in first) == ("me", "gridlstm", False)
        assert (second["id"], second["name"]) == ("v", "nw-saved-v"), "the second upload updates the view of the first"
        resumed = {asked["name"] for asked in wandb_server.of("RunResumeStatus")}
        assert len(resumed) == 1, "both uploads log to one run of the report"
        assert {asked["name"] for asked in wandb_server.of("UpsertBucket")} == resumed


def test_invalid_requests_are_refused_with_a_reason(
    sweep: Path, tmp_path: Path, job: Callable[..., DictConfig]
) -> None:
    for arguments, words in (
        ([str(sweep), "upload=true"], "wandb login"),
        ([str(sweep), "upload=maybe"], "true or false"),
        ([str(sweep), "color=red"], "no option color"),
        ([str(tmp_path / "nothing")], "is not a directory"),
    ):
        done = dashboard(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
    run_job(job("stages=[fit]", directory="runs/csv"))
    with pytest.raises(UserError, match="none of these runs was logged to W&B"):
        build(find_runs([tmp_path / "runs"]), "n")
    other = ["logger=wandb", "logger.wandb.mode=offline", "logger.wandb.project=other"]
    run_job(job(*other, "stages=[fit]", directory="runs/other"))
    with pytest.raises(UserError, match="several W&B projects: your own/gridlstm, your own/other"):
        build([*find_runs([sweep]), *find_runs([tmp_path / "runs"])], "n")
