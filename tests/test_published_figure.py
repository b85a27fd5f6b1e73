"""Comparison of runs with a published figure: samples to thresholds, points against a size, and a learning curve."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig
from tests.conftest import compose

from gridlstm.errors import UserError
from gridlstm.options import leaves
from gridlstm.report.beside import beside
from gridlstm.report.published_figure import figure_picture, medians, panels, published_curves, shown
from gridlstm.report.runs import SOLVED, Run
from gridlstm.report.tables import Table, make_tables
from gridlstm.report.thresholds import samples_to_thresholds
from gridlstm.training.published import check_report, read_curves, read_points
from gridlstm.training.validate import check


def run(directory: Path, layers: int, curve: list[tuple[float, float]], model: str = "grid2d", seed: int = 1) -> Run:
    config = {
        "run.model": model, "run.task": "memorization", "seed": seed, "task.monitor": "val/accuracy",
        "task.mode": "max",
        "model.num_layers": layers, "model.tied": True, "model.hidden_size": 100,
        "task.length": 20, "task.alphabet": 64, "task.delay": 0, "task.digits": 15,
        "report.points": "memorization_figure", "report.curve": "addition_figure",
    }  # fmt: skip
    solved = next((int(x) for x, y in curve if y == 1), None)
    result = {"status": "completed", SOLVED: solved, "samples": int(curve[-1][0]), "best": {"val/accuracy": 1.0}}
    return Run(directory / f"{model}-{layers}-{seed}", config, result, curves={"val/accuracy": curve})


@pytest.fixture
def table(tmp_path: Path) -> Table:
    steps = [(1000.0, 0.3), (2000.0, 0.6), (3000.0, 0.95), (4000.0, 0.7), (5000.0, 0.99), (6000.0, 1.0)]
    runs = [
        run(tmp_path, 7, steps),
        run(tmp_path, 7, [(2 * x, y) for x, y in steps], seed=2),
        run(tmp_path, 43, [(4 * x, y) for x, y in steps]),
        run(tmp_path, 2, [(1000.0, 0.1), (9000.0, 0.4)], model="stacked_lstm"),
    ]
    (table,) = make_tables(runs)
    return table


def test_a_threshold_is_reached_at_its_first_validation(table: Table) -> None:
    found = samples_to_thresholds(table)
    assert found is not None
    assert found.columns[-5:] == ("50%", "80%", "90%", "99%", "runs that reached each")
    rows = {row[:2]: row[2:] for row in found.rows}
    assert [cell.mean for cell in rows["grid2d", "7"][:4]] == [3000, 4500, 4500, 7500]  # type: ignore[union-attr]
    assert (rows["grid2d", "7"][3].min, rows["grid2d", "7"][3].max) == (5000, 10000)  # type: ignore[union-attr]
    assert rows["stacked_lstm", "2"] == (None, None, None, None, "0, 0, 0, 0 of 1")


def test_runs_are_in_the_panel_of_their_network_at_its_threshold(table: Table) -> None:
    tied, untied, stacked, _ = panels(table)
    assert (tied.network, tied.at_least, len(tied.published)) == ("model=grid2d model.tied=true", 0.99, 42)
    assert sorted(tied.runs) == [(7, 5000, True), (7, 10000, True), (43, 20000, True)]
    assert untied.runs == []
    assert stacked.runs == [(2, 9000, False)]


@pytest.mark.parametrize(("option", "value"), [("report.points", None), ("task.length", 5)])
def test_runs_of_another_experiment_or_size_are_no_points(
    option: str, value: int | None, table: Table, tmp_path: Path
) -> None:
    other = run(tmp_path, 7, [(1000.0, 1.0)], seed=3)
    other.config[option] = value
    (together,) = make_tables([*(one for group in table.groups for one in group.runs), other])
    assert [sorted(panel.runs) for panel in panels(together)] == [sorted(panel.runs) for panel in panels(table)]


def test_only_options_in_which_networks_differ_are_shown(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [
        f"model={model} model.tied={tied}" for model in ("grid2d", "stacked_lstm") for tied in ("true", "false")
    ]
    assert [panel.network for panel in panels(table)] == networks
    small = medians(table)
    assert small is not None
    assert [row[0] for row in small.rows] == networks
    figures = []
    monkeypatch.setattr("gridlstm.report.published_figure.to_png", figures.append)
    figure_picture([table])
    assert [axes.get_title() for axes in figures[0].axes] == [
        "grid2d, tied=true: to 99%",
        "grid2d, tied=false: to 80%",
        "stacked_lstm, tied=true: to 50%",
        "stacked_lstm, tied=false: to 50%",
    ]


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        (["model=a task.digits=15"], ["model=a"]),
        (["model=a task.digits=15", "model=b task.digits=15"], ["model=a", "model=b"]),
        (["model=a task.digits=3", "model=a task.digits=15"], ["task.digits=3", "task.digits=15"]),
        (["model=a", "model=a model.tied=true"], ["model=a", "model.tied=true"]),
    ],
)
def test_every_network_of_a_file_is_named(networks: list[str], expected: list[str]) -> None:
    assert [shown(networks)[network] for network in networks] == expected


def test_medians_are_over_depths_and_compared(table: Table) -> None:
    found = medians(table)
    assert found is not None
    row = found.rows[0]
    assert row[2] == 495_000, "the median of the 42 published depths"
    assert row[4] == (7500 + 20000) / 2
    assert row[-1] == pytest.approx(13750 / 495_000)
    assert found.title in [small.title for small in beside(table)]


def test_the_figure_is_drawn_where_an_experiment_names_one(table: Table, tmp_path: Path) -> None:
    assert (figure_picture([table]) or b"").startswith(b"\x89PNG")
    plain = run(tmp_path, 7, [(1000.0, 1.0)])
    plain.config["report.points"] = None
    assert figure_picture(make_tables([plain])) is None


def test_a_published_curve_is_of_the_monitored_metric(table: Table) -> None:
    ((network, samples, values),) = published_curves(table)
    assert network == "model=grid2d model.tied=true model.num_layers=18"
    assert len(samples) == len(values) == 324
    assert values[-1] > 0.99


def test_a_published_curve_is_not_drawn_for_numbers_of_another_length(tmp_path: Path) -> None:
    other = run(tmp_path, 18, [(1000.0, 1.0)])
    other.config["task.digits"] = 3
    (table,) = make_tables([other])
    assert published_curves(table) == []


def test_custom_points_file_is_accepted_and_missing_one_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("network,at_least,model.num_layers,samples\nmodel=grid2d,0.5,7,100\n")
    check_report({"points": str(own)})
    spreadsheet = tmp_path / "spreadsheet.csv"
    spreadsheet.write_text(own.read_text(), encoding="utf-8-sig")
    assert (
        read_points(str(spreadsheet))
        == read_points(str(own))
        == ("model.num_layers", [("model=grid2d", 0.5, 7.0, 100.0)])
    )
    with pytest.raises(
        UserError, match=r"report\.points=none is not a file\. Give .* addition_figure, memorization_figure, tor"
    ):
        check_report({"points": "none"})


POINTS, CURVE = "network,at_least,model.num_layers,samples\n", "network,samples,val/accuracy\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("points", b"", "needs rows below a line with the columns network, at_least, samples and an option .*, got no"),
        ("points", POINTS, "got 'network', 'at_least', 'model.num_layers', 'samples' and 0 rows"),
        ("points", "network,samples,model.num_layers\na=b,1,2\n", "got 'network', 'samples', 'model.num_layers'"),
        ("points", "network,at_least,samples\na=b,1,2\n", "and an option such as model.num_layers, got"),
        ("points", f"{POINTS}a=b,0.5,7,100\na=b,half,7,100\n", "row 2: at_least must be a number, got 'half'"),
        ("points", f"{POINTS}a=b,0.5,7\n", "row 1: samples must be a number, got None"),
        ("points", f"{POINTS}a=b,0.5,7,nan\n", "row 1: samples must be a number, got 'nan'"),
        ("points", f"{POINTS}grid2d,0.5,7,100\n", "row 1: network must be options, got 'grid2d'"),
        ("points", b"\xff\xfe", "cannot be read as CSV: .*utf-8"),
        ("curve", "network,samples\na=b,1\n", "and a metric such as val/accuracy, got 'network', 'samples' and 1 rows"),
        ("curve", f"{CURVE}a=b,1,x\n", "row 1: val/accuracy must be a number, got 'x'"),
    ],
)
def test_a_file_of_another_form_is_refused(name: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"report\.{name}=.*own\.csv.*{message}"):
        check_report({name: str(own)})


def test_a_metric_that_falls_has_no_thresholds(tmp_path: Path, job: Callable[..., DictConfig]) -> None:
    falling = run(tmp_path, 7, [(1000.0, 1.0)])
    falling.config["task.mode"] = "min"
    assert figure_picture(make_tables([falling])) is None
    with pytest.raises(UserError, match=r"so it must rise, but task\.mode=min\. Remove report\.points"):
        check(job("report.points=memorization_figure", "task.mode=min"))


def test_a_file_that_has_moved_is_left_out_of_a_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved = run(tmp_path, 7, [(1000.0, 1.0)])
    moved.config |= {"report.points": "gone.csv", "report.curve": "gone.csv"}
    (table,) = make_tables([moved])
    assert figure_picture([table]) is None
    assert medians(table) is None
    assert published_curves(table) == []
    assert caplog.text.count("left out: report.points=gone.csv is not a file.") == 1
    check_report({"points": "gone.csv"}, read_files=False)


def test_the_papers_figures_are_named_by_their_experiments() -> None:
    points, curve = (
        dict(leaves(compose(f"experiment={experiment}").report))[name]
        for experiment, name in (("paper/memorization_figure", "points"), ("paper/addition", "curve"))
    )
    assert len(read_points(points).points) == 64
    assert [len(curve.samples) for curve in read_curves(curve)] == [324]


def test_the_torch7_curves_end_where_the_experiment_does() -> None:
    cfg = compose("experiment=torch7/wikipedia")
    curves = {curve.network: curve for curve in read_curves(cfg.report.curve)}
    assert curves.keys() == cfg.report.paper["val/bpc"].keys()
    for network, end in cfg.report.paper["val/bpc"].items():
        curve = curves[network]
        assert curve.metrics["val/bpc"][-1] == pytest.approx(end, abs=1e-3)
        assert 0.99 < curve.samples[-1] / (cfg.trainer.max_steps * cfg.task.data.batch_size) <= 1
