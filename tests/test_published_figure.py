"""Comparison of runs with a published figure: samples to thresholds, points against a size, and a learning curve."""

from pathlib import Path

import pytest
from tests.conftest import compose

from gridlstm.errors import UserError
from gridlstm.options import leaves
from gridlstm.report.beside import beside
from gridlstm.report.published_figure import figure_picture, medians, panels, published_curves
from gridlstm.report.runs import SOLVED, Run
from gridlstm.report.tables import Table, make_tables
from gridlstm.report.thresholds import samples_to_thresholds
from gridlstm.training.published import check_report, published_file


def run(directory: Path, layers: int, curve: list[tuple[float, float]], model: str = "grid2d", seed: int = 1) -> Run:
    config = {
        "run.model": model, "run.task": "memorization", "seed": seed, "task.monitor": "val/accuracy",
        "task.mode": "max",
        "model.num_layers": layers, "model.tied": True, "report.points": "memorization_figure",
        "report.curve": "addition_figure",
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


def test_custom_points_file_is_accepted_and_missing_one_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("network,at_least,model.num_layers,samples\nmodel=grid2d,0.5,7,100\n")
    check_report({"points": str(own)})
    assert published_file(str(own)) == own
    with pytest.raises(
        UserError, match=r"report\.points=none is not a file\. Give .* addition_figure, memorization_figure"
    ):
        check_report({"points": "none"})


def test_the_papers_figures_are_named_by_their_experiments() -> None:
    for experiment, name in (("paper/memorization_figure", "points"), ("paper/addition", "curve")):
        config = dict(leaves(compose(f"experiment={experiment}").report))
        assert published_file(config[name]).is_file()
