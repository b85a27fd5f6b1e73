"""The report on a sweep contains every run, and its page works in a browser."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from tests.conftest import PATIENCE, TOO_MANY_LAYERS, compose, run_python

from gridlstm.errors import UserError
from gridlstm.options import leaves
from gridlstm.report.__main__ import report
from gridlstm.report.arguments import places
from gridlstm.report.beside import beside
from gridlstm.report.budgets import at_equal_budgets
from gridlstm.report.curves import best_ten, picture
from gridlstm.report.drawing import labeled, short_names
from gridlstm.report.lengths import by_length, length_picture
from gridlstm.report.page import page
from gridlstm.report.runs import SOLVED, Run, find_runs
from gridlstm.report.sizes import _draw_means, _Mark, _marks, _scores, depth_picture, size_picture
from gridlstm.report.tables import Group, Spread, Table, evidence, make_tables, readable
from gridlstm.report.text import markdown
from gridlstm.training.job import run_job
from gridlstm.training.validate import check

POINTS = [("grid2d", 1), ("grid2d", 2), ("stacked_lstm", 1), ("stacked_lstm", 2), ("stacked_lstm", 3)]


@pytest.fixture(scope="module")
def trained(job_in: Callable[..., DictConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two models with two seeds each, one of which fails, and plan a fifth job that never starts."""
    root, plan = tmp_path_factory.mktemp("trained") / "sweep", []
    for number, (model, seed) in enumerate(POINTS):
        name = f"{number}-memorization-{model}-s{seed}"
        fault = [f"model.num_layers={TOO_MANY_LAYERS}"] if number == 2 else []
        plan.append({"number": number, "name": name, "overrides": [f"model={model}", f"seed={seed}", *fault]})
        names = [f"run.name=memorization-{model}-s{seed}", "report.paper={test/accuracy: {grid2d: 0.99}}"]
        if number == 2:
            with pytest.raises(UserError):
                run_job(job_in(root, f"seed={seed}", *names, *fault, model=model, directory=name))
        elif number < 4:
            run_job(job_in(root, f"seed={seed}", *names, model=model, directory=name))
    (root / "sweep.json").write_text(json.dumps({"jobs": plan}))
    (root / "multirun.yaml").touch()
    (root / "slurm").mkdir()  # not a job: sweep.json does not list it
    (root / "reports").mkdir()
    return root


@pytest.fixture
def sweep(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained sweep."""
    return shutil.copytree(trained, tmp_path / "sweep")


def test_run_command_is_shown_as_typed() -> None:
    words = ["model=grid2d", "task.path='/a b/c.txt'", r"trainer.max_time=00\:05\:00", "hydra.run.dir='/x/0-a'"]
    command = shlex.join(
        ["/x/bin/python", "-m", "gridlstm.train", "seed=2", *words, "run.name='0-a'", "ckpt_path=last"]
    )
    typed = readable(command)
    assert typed == (
        r"""python -m gridlstm.train seed=2 model=grid2d "task.path='/a b/c.txt'" 'trainer.max_time=00\:05\:00'"""
    )
    assert shlex.split(typed) == ["python", "-m", "gridlstm.train", "seed=2", *words[:3]]


def test_every_run_is_in_the_report(sweep: Path) -> None:
    for name in ("samples_to_solve.png", "test_lengths.png"):
        (sweep / name).touch()  # left by an earlier report on runs with a criterion and several lengths
    line, *lost = report([sweep], sweep)
    assert len(lost) == 2
    assert line == "5 runs: 3 completed, 1 failed, 1 missing."
    with (sweep / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    (grid,) = (row for row in rows if row["model"] == "grid2d")
    scores = [json.loads(p.read_text())["score"] for p in sorted(sweep.glob("[01]-*/result.json"))]
    tested = [json.loads(p.read_text())["test"]["test/loss"] for p in sorted(sweep.glob("[01]-*/result.json"))]
    assert float(grid["best val/accuracy"]) == pytest.approx(sum(scores) / 2)
    assert (float(grid["test/loss min"]), float(grid["test/loss max"])) == (min(tested), max(tested))
    assert (grid["seeds"], grid["paper's test/accuracy"], grid["steps"]) == ("2", "0.99", "4")
    assert re.fullmatch(r"[0-9a-f]{10}(\+changes)?|unknown", grid["commit"])
    assert all(row["paper's test/accuracy"] == "" for row in rows if row is not grid)
    text = (sweep / "report.md").read_text()
    assert re.search(
        "2-memorization-stacked_lstm-s1` [*]{2}failed[*]{2} UserError: these sizes need more memory than is available",
        text,
    )
    assert "-s3` **missing**" in text
    assert "seed 3 missing" in text
    assert r"test/sequence\_accuracy" in (sweep / "report.tex").read_text()
    first = json.loads((sweep / "0-memorization-grid2d-s1" / "result.json").read_text())
    (row,) = (line for line in text.splitlines() if line.startswith("| grid2d |") and "python" in line)
    versions = ", ".join(f"{package} {version}" for package, version in first["versions"].items())
    assert f"| 1, 2 | {versions} | {first['device']} | {grid['commit']} | `{readable(first['command'])}` |" in row
    assert grid["which seeds"] == "1, 2"
    assert '"title":"Evidence"' in (sweep / "report.html").read_text()
    assert [path.name for path in sweep.glob("*.png")] == ["curves.png"]
    assert (sweep / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(sweep.glob("*.part"))


def test_runs_differing_beyond_the_seed_get_separate_rows(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    for number, options in enumerate((["seed=1"], ["seed=2"], ["seed=1", "optimizer.lr=0.5"])):
        run_job(job(*options, directory=f"runs/{number}"))
    (table,) = make_tables(find_runs([tmp_path / "runs"]))
    assert table.columns[0] == "optimizer.lr", (
        "the difference must be found in config.yaml, since no overrides are recorded"
    )
    assert {row[0]: row[table.columns.index("seeds")] for row in table.rows} == {"0.003": 2, "0.5": 1}
    assert all(isinstance(row[1], Spread) for row in table.rows)


def test_logging_and_path_options_do_not_change_run_identity(sweep: Path) -> None:
    first = find_runs([sweep])[0]
    more = {"logger.wandb.project": "p", "stages": ["fit"], "report.claims.a.claim": "b"}
    more |= {"callbacks.checkpoint._target_": "mine.Checkpoint", "callbacks.progress.every_seconds": 99}
    more |= {"data_dir": "/elsewhere", "task.data.source.data_dir": "/elsewhere", "task.data.cache_dir": "/scratch"}
    other = replace(first, config={**first.config, **more})
    assert other.identity() == first.identity()
    assert replace(first, config={**first.config, "model.tied": False}).identity() != first.identity()


@pytest.mark.parametrize(
    "options",
    [
        {"trainer.enable_progress_bar": False, "trainer.log_every_n_steps": 7},
        {"trainer.profiler": "simple", "trainer.detect_anomaly": True},
        {"trainer.accelerator": "gpu", "trainer.devices": 4, "trainer.strategy": "ddp"},
        {"model.sweep": "reference"},
        {"task.data.num_test": 5, "trainer.limit_test_batches": 1},
    ],
)
def test_display_device_and_speed_options_keep_run_identity(sweep: Path, options: dict[str, object]) -> None:
    first = find_runs([sweep])[0]
    assert replace(first, config={**first.config, **options}).identity() == first.identity()


def test_runs_on_other_test_images_have_rows_of_their_own(sweep: Path) -> None:
    first = find_runs([sweep])[0]
    one, other = (replace(first, result={**first.result, "data": 1, "test_data": value}) for value in (1, 2))
    (table,) = make_tables([one, other])
    assert [group.label for group in table.groups] == ["test_data=1", "test_data=2"]
    older = replace(first, result={**first.result, "data": 1})
    (table,) = make_tables([one, older])
    assert len(table.groups) == 1, "older runs lack the checksum"


@pytest.mark.parametrize("option", ["task.data.source.test", "task.data.test_digits", "task.test_pairs"])
def test_runs_that_were_tested_differently_have_rows_of_their_own(sweep: Path, option: str) -> None:
    first = find_runs([sweep])[0]
    one, other = (replace(first, config={**first.config, option: value}) for value in (1, 2))
    assert one.identity() != other.identity()


@pytest.mark.parametrize(
    ("data", "equal"), [({"task.data.target_level._target_": "gridlstm.data.words.PieceLevel"}, False), ({}, True)]
)
def test_the_beam_distinguishes_translations_alone(sweep: Path, data: dict[str, str], equal: bool) -> None:
    first = find_runs([sweep])[0]
    beam = "callbacks.translations.beam"
    one, other = (replace(first, config={**first.config, **data, beam: value}) for value in (1, 2))
    assert (one.identity() == other.identity()) is equal


def test_translations_are_compared_with_both_published_numbers_of_references() -> None:
    shown = compose("experiment=paper/translation").report
    config = {f"report.{key}": value for key, value in leaves(OmegaConf.to_container(shown))}
    config |= {"run.model": "reencoder", "task.monitor": "val/loss"}
    result = {"status": "completed", "best": {"val/loss": 2.0}, "test": {"test/bleu": 50.5, "test/bleu_one": 30.5}}
    (table,) = make_tables([Run(Path("run"), config, result, {"model": "reencoder"})])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["test/bleu_one"] == Spread(30.5, 30.5, 30.5)
    assert [row[f"paper's test/{name} (recalled)"] for name in ("bleu", "bleu_one")] == [60.2, 42.4]
    elsewhere = {small.columns[1]: dict(small.rows) for small in beside(table)}
    assert elsewhere == {
        "test/bleu": {"CDEC (phrase-based)": "58.9"},
        "test/bleu_one": {"CDEC (phrase-based)": "41", "DGLSTM (LSTM with attention)": "34.5"},
    }


def test_copies_of_one_text_share_a_row(job: Callable[..., DictConfig], tmp_path: Path, text_file: Path) -> None:
    texts = [tmp_path / "same.txt", tmp_path / "other.txt"]
    texts[0].write_bytes(text_file.read_bytes())
    texts[1].write_text(text_file.read_text().replace("times", "and"))
    for number, text in enumerate((text_file, *texts)):
        run_job(job(f"task.path={text}", f"seed={number}", "stages=[fit]", task="text", directory=f"runs/{number}"))
    result = tmp_path / "runs" / "0" / "result.json"
    result.write_text(result.read_text().replace('"data": ', '"text": '))  # as older runs wrote it
    (table,) = make_tables(find_runs([tmp_path / "runs"]))
    assert sorted(len(group.runs) for group in table.groups) == [1, 2]


def test_unstarted_job_varies_only_in_its_overrides(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    run_job(job("stages=[fit]", directory="sweep/0-began"))
    # Stages do not change training, so the last job repeats the first.
    planned = {
        "0-began": ["model=grid2d", "stages=[fit]"],
        "1-never": ["model=stacked_lstm"],
        "2-never": ["model=grid2d"],
    }
    plan = [{"number": n, "name": name, "overrides": given} for n, (name, given) in enumerate(planned.items())]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"jobs": plan}))
    (tmp_path / "sweep" / "multirun.yaml").touch()
    (tmp_path / "sweep" / "wandb").mkdir()  # the dashboard writes it; it is not a run
    runs = find_runs([tmp_path / "sweep"])
    assert {run.directory.name: run.status for run in runs} == {
        "0-began": "completed",
        "1-never": "missing",
        "2-never": "missing",
    }
    (table,) = make_tables(runs)
    assert table.varied == ("model",)
    assert [(row[0], row[-1]) for row in table.rows] == [("grid2d", "missing"), ("stacked_lstm", "missing")]


def test_training_to_a_criterion_is_compared_by_its_samples(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    """The paper's number is shown only for its own network, samples are drawn against depth, and unsolved runs stay."""
    solved: dict[str, list[int]] = {"1": [], "2": []}
    for seed in (1, 2):
        for layers in ("1", "2", "3"):
            options = ["callbacks=criterion", "task.length=1", "task.alphabet=2", "model.hidden_size=16"]
            options += [f"model.num_layers={layers}", f"seed={seed}", "report.recalled=true"]
            # Runs with three layers have too few steps to solve the task.
            options += [] if layers == "3" else ["trainer.max_steps=300"]
            options += ["callbacks.learning_curve=null", "task.val_every=20"]
            directory = tmp_path / "runs" / f"{layers}-{seed}"
            config = job(*options, directory=f"runs/{layers}-{seed}")
            config.report.paper = {"samples_to_solve": {"model=grid2d model.num_layers=2": 150000}}
            run_job(config)
            found = json.loads((directory / "result.json").read_text())["samples_to_solve"]
            assert (found is None) == (layers == "3")
            if found:
                solved[layers].append(found)
    report([tmp_path / "runs"], tmp_path)
    with (tmp_path / "report.csv").open() as file:
        rows = {row["model.num_layers"]: row for row in csv.DictReader(file)}
    for layers, samples in solved.items():
        assert float(rows[layers]["samples to solve"]) == sum(samples) / 2
        assert float(rows[layers]["samples to solve max"]) == max(samples)
    assert [rows[layers]["solved"] for layers in "123"] == ["2 of 2", "2 of 2", "0 of 2"]
    paper_column = "paper's samples to solve (recalled)"
    assert [rows[layers][paper_column] for layers in "123"] == ["", "150000.0", ""]
    assert list(rows)[-1] == "3", "unsolved networks come last"
    assert (tmp_path / "samples_to_solve.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "report.md").read_text()
    assert "![samples_to_solve](samples_to_solve.png)" in text
    assert "| 150,000 |" in text


def test_report_compares_published_claims_with_best_runs(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    """A claim is compared with the best run that it selects; without one, the report says "not run"."""
    given = {
        "paper": None,
        "recalled": False,
        "published": {"test/loss": {"MRNN (2011), 4.9 M": 1.6}},
        "claims": {
            "a": {
                "claim": "grid, LSTM",
                "there": "4.61 %",
                "of": "model=grid2d",
                "against": "model=stacked_lstm",
            },
            "v1.0": {"claim": "of 9 layers", "there": 5, "of": "model=grid2d model.num_layers=9"},
            "failed": {"claim": "fails", "there": "5", "of": "model=grid1d"},
            "against none": {"claim": "b", "there": "5", "of": "model=grid2d", "against": "model=rnn"},
            "against failed": {"claim": "c", "there": "5", "of": "model=grid2d", "against": "model=grid1d"},
            "c": {"claim": "alone", "there": "5", "of": "model=grid2d model.num_layers=2.0"},
        },
    }
    options = ["task.monitor=val/loss", "task.mode=min"]
    for number, model in enumerate(["grid2d", "grid2d", "stacked_lstm"]):
        config = job(*options, f"optimizer.lr={0.01 / (number + 1)}", model=model, directory=f"runs/{number}")
        OmegaConf.update(config, "report", given, force_add=True)
        run_job(config)
        # Jobs so short may take equally many milliseconds; then no table of equal budgets is due.
        result = tmp_path / "runs" / str(number) / "result.json"
        result.write_text(json.dumps(json.loads(result.read_text()) | {"fit_seconds": number + 1}))
    failed = tmp_path / "runs" / "3"
    failed.mkdir()
    OmegaConf.update(config, "run.model", "grid1d")
    OmegaConf.save(config, failed / "config.yaml", resolve=True)
    (failed / "result.json").write_text('{"status": "failed", "error": "the training loss grew"}')
    report([tmp_path / "runs"], tmp_path)
    scores = [json.loads((tmp_path / "runs" / str(n) / "result.json").read_text())["score"] for n in range(3)]
    best = min(scores[:2])
    percent = 100 * (1 - best / scores[2])
    text = (tmp_path / "report.md").read_text()
    assert "### Published elsewhere\n\n| network | test/loss |\n| --- | --- |\n| MRNN (2011), 4.9 M | 1.6 |\n" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| grid, LSTM |"))
    assert f"| 4.61 % | {abs(percent):.2f} % {'below' if percent >= 0 else 'above'}: {best:.4g} (" in row
    assert "| of 9 layers | 5 | not run |" in text
    assert "| fails | 5 | run, not completed |" in text
    assert f"| alone | 5 | {best:.4g} |" in text
    assert re.search(r"\| b \| 5 \| \S+ \(\d\); the other: not run \|", text)
    assert re.search(r"\| c \| 5 \| \S+ \(\d\); the other: run, not completed \|", text)
    latex = (tmp_path / "report.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4, (
        "expected tables of the runs, of equal budgets, of published results and of claims"
    )
    assert r"4.61 \%" in latex
    assert '"title":"Published claims"' in (tmp_path / "report.html").read_text()


def test_zero_baseline_score_gives_no_percentage(tmp_path: Path) -> None:
    claim = {"report.claims.a.claim": "a", "report.claims.a.there": "1", "report.claims.a.of": "model=grid2d"}
    claim["report.claims.a.against"] = "model=rnn"
    runs = [
        Run(
            tmp_path / model,
            {"run.model": model, "task.monitor": "val/accuracy", "task.mode": "max", "seed": 1, **claim},
            {"status": "completed", "best": {"val/accuracy": best}},
        )
        for model, best in (("grid2d", 0.5), ("rnn", 0.0))
    ]
    (claims,) = (each for each in beside(make_tables(runs)[0]) if each.title == "Published claims")
    assert claims.rows == (("a", "1", "0.5 (grid2d), 0 (rnn)"),)


def test_claims_of_an_experiment_use_only_its_runs(tmp_path: Path) -> None:
    """Experiments may share names of claims; a run outside all experiments supports no claim, however good it is."""

    def run(experiment: str, model: str, best: float, **claim: str) -> Run:
        config = {"run.group": experiment, "run.model": model, "task.monitor": "val/loss", "task.mode": "min"}
        said = {f"report.claims.best.{part}": value for part, value in claim.items()}
        result = {"status": "completed", "best": {"val/loss": best}}
        return Run(tmp_path / f"{experiment}-{model}", config | said, result)

    both = {"of": "model=grid2d", "against": "model=rnn"}
    runs = [
        run("small", "grid2d", 0.5, claim="small", there="1 % below", **both),
        run("small", "rnn", 1.0, claim="small", there="1 % below", **both),
        run("large", "grid2d", 0.9, claim="large", there="2 % below", **both),
        run("large", "rnn", 1.2, claim="large", there="2 % below", **both),
        run("adhoc", "grid2d", 0.1),
    ]
    (table,) = make_tables(runs)
    assert {small.title: small.rows for small in beside(table)} == {
        "Published claims, small": (("small", "1 % below", "50.00 % below: 0.5 (small-grid2d), 1 (small-rnn)"),),
        "Published claims, large": (("large", "2 % below", "25.00 % below: 0.9 (large-grid2d), 1.2 (large-rnn)"),),
    }
    (table,) = make_tables(runs[:2])
    assert [small.title for small in beside(table)] == ["Published claims"]


def run_of(model: str, seed: int, samples: int, seconds: float, *curve: tuple[float, float], **result: Any) -> Run:
    best = {"val/bpc": min(y for _, y in curve)}
    config = {"run.model": model, "seed": seed, "task.monitor": "val/bpc", "task.mode": "min"}
    found = {"status": "completed", "samples": samples, "fit_seconds": seconds, "device": "a CPU", "best": best}
    return Run(Path(f"{model}-{seed}"), config, found | result, {"model": model}, {"val/bpc": list(curve)})


def test_networks_are_compared_at_equal_samples_and_at_equal_seconds() -> None:
    """The best score within the smallest run's budget counts, so longer runs of fast networks have no advantage."""
    slow = [run_of("slow", seed, 100, 50.0, (50, 3.0), (80, 1.9 + seed), (100, 2.0 + seed)) for seed in (1, 2)]
    fast = run_of("fast", 1, 400, 80.0, (100, 2.5), (200, 2.2), (250, 2.1), (400, 1.8))
    (table,) = make_tables([*slow, fast])
    budgets = at_equal_budgets(table)
    assert budgets is not None
    assert budgets.columns == ("model", "val/bpc within 100 samples", "val/bpc within 50 s of training")
    assert {row[0]: row[1:] for row in budgets.rows} == {
        "slow": (pytest.approx((2.95, 2.9, 3.0)), pytest.approx((2.95, 2.9, 3.0))),
        "fast": (Spread(2.5, 2.5, 2.5), Spread(2.1, 2.1, 2.1)),
    }
    assert "| slow | 2.95 (2.9 to 3) |" in markdown([table], [], Path(), [])
    (table,) = make_tables([*slow, run_of("fast", 1, 400, 80.0, (100, 2.5), device="a GPU")])
    budgets = at_equal_budgets(table)
    assert budgets is not None
    assert budgets.columns == ("model", "val/bpc within 100 samples"), "seconds on different devices are not compared"
    (table,) = make_tables([*slow, run_of("fast", 1, 100, 50.0, (100, 2.5))])
    assert at_equal_budgets(table) is None, "with equal budgets, the table of runs already compares them"
    (table,) = make_tables([*slow, run_of("fast", 1, 60, 30.0, (60, 2.5), samples_to_solve=60)])
    assert at_equal_budgets(table) is None, "runs that a criterion ended have no equal budget"


def test_a_cell_at_equal_budgets_is_a_mean_over_all_seeds_or_empty() -> None:
    """The mean of the seeds that were validated in time would be the score of the fastest seeds."""
    slow = run_of("slow", 1, 100, 50.0, (100, 2.0))
    fast = [run_of("fast", 1, 400, 80.0, (100, 2.5), (400, 1.8)), run_of("fast", 2, 400, 80.0, (150, 2.4), (400, 1.7))]
    (table,) = make_tables([slow, *fast])
    budgets = at_equal_budgets(table)
    assert budgets is not None
    assert {row[0]: row[1:] for row in budgets.rows} == {
        "slow": (Spread(2.0, 2.0, 2.0), Spread(2.0, 2.0, 2.0)),
        "fast": (None, pytest.approx((2.45, 2.4, 2.5))),
    }


def test_runs_of_unknown_samples_have_no_equal_budgets() -> None:
    runs = [run_of("slow", 1, 100, 50.0, (100, 2.0)), run_of("fast", 1, 400, 80.0, (100, 2.5), (400, 1.8))]
    del runs[0].result["samples"]
    (table,) = make_tables(runs)
    assert at_equal_budgets(table) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"papers": {}}, "report.papers does not exist. Choices: paper, recalled, published, claims, points, curve."),
        ({"paper": 1.47}, "report.paper must be names with their values, got 1.47."),
        ({"paper": {"test/bpc": {"grid2d": "1.47 bits"}}}, "report.paper.test/bpc must be a number, or one for each"),
        ({"published": {"test/bpc": 1.67}}, "report.published.test/bpc must be names with their values, got 1.67."),
        ({"published": {"test/bpc": {"MRNN": None}}}, "report.published.test/bpc must be numbers, got None for MRNN."),
        ({"claims": {"a": {"claim": 1, "there": 5}}}, "report.claims.a needs claim, there, of, but has no 'of'."),
        ({"claims": {"a": {"claim": 1, "there": 5, "of": "grid2d"}}}, "report.claims.a.of must be options such as"),
        ({"claims": {"a": {"claim": 1, "there": 5, "of": "a=b", "versus": "a=c"}}}, "report.claims.a.versus does not"),
    ],
)
def test_incomplete_published_results_are_refused(
    job: Callable[..., DictConfig], tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    """The check runs before a run begins, and when a report reads the configuration of a run."""
    config = job()
    OmegaConf.update(config, "report", given, force_add=True, merge=False)
    with pytest.raises(UserError, match=re.escape(words)):
        check(config)
    OmegaConf.save(config, tmp_path / "config.yaml")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'config.yaml'}: {words}")):
        find_runs([tmp_path])


def test_the_picture_has_the_ten_best_of_each_model(tmp_path: Path) -> None:
    curve = {"val/accuracy": [(1.0, 0.5)]}
    runs = [
        Run(tmp_path / f"{model}-{n}", {"run.model": model, "seed": n}, {"best": {"val/accuracy": n}}, {}, curve)
        for model in ("a", "b")
        for n in range(12)
    ]
    runs[0].result["samples_to_solve"] = 100
    groups = Group({"model": "a"}, tuple(runs[:12])), Group({"model": "b"}, tuple(runs[12:]))
    table = Table("val/accuracy", "max", (), (), (), groups)
    assert [run.seed for run in best_ten(table)] == [0, *range(11, 2, -1), *range(11, 1, -1)]
    runs[23].result["best"] = {"val/accuracy": None}  # it has no score
    assert len(best_ten(table)) == 20
    few = Table("val/accuracy", "max", (), (), (), (Group({"model": "a"}, tuple(runs[:12])),))
    assert len(best_ten(few)) == 12


def test_size_picture_covers_every_size_and_depth() -> None:
    def sizes(bits: int, layers: int) -> dict[str, int]:
        return {"task.bits": bits, "model.num_layers": layers}

    def runs(bits: tuple[int, ...], layers: tuple[int, ...]) -> list[Run]:
        return [
            Run(
                Path(f"{k}-{n}"),
                {"run.model": "grid1d", "task.monitor": "val/accuracy", "task.mode": "max", **sizes(k, n)},
                {"status": "completed", "samples": 9, SOLVED: 5 if n > 1 else None, "best": {"val/accuracy": n / 9}},
                {key: str(value) for key, value in sizes(k, n).items()},
            )
            for k in bits
            for n in layers
        ]

    def height(bits: tuple[int, ...], layers: tuple[int, ...]) -> int:
        drawn = size_picture(make_tables(runs(bits, layers)))
        assert drawn is not None
        return int.from_bytes(drawn[20:24])  # the height in the header of the PNG file

    axes = Figure().subplots()
    marks = [_Mark("grid2d", {}, 0, 0.0, solved=True)] * 3 + [_Mark("rnn", {}, 0, 0.0, solved=False)]
    _draw_means(axes, ["grid2d", "rnn"], list(zip((4, 2, 2, 1), (5, 1, 3, 7), marks, strict=True)))
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[2, 2], [4, 5]], [[1, 7]]]  # type: ignore[union-attr]

    (table,) = make_tables(runs((20,), (1, 2)))
    for group in table.groups:
        group.runs[0].result["status"] = "failed"
    assert sorted(m.solved for m in _marks(table)) == [False, True], (
        "a diverged run counts as solved only if it was solved before"
    )

    one_row, three_rows = height((20,), (1, 2)), height((20, 40), (1, 2))
    assert 2.5 * one_row < three_rows < 3.5 * one_row
    assert size_picture(make_tables(runs((20,), (2,)))) is None


def test_scores_of_runs_without_criterion_are_drawn_by_depth(tmp_path: Path) -> None:
    for number, (model, layers, seed) in enumerate(
        [("grid3d", 1, 1), ("grid3d", 16, 1), ("grid3d", 16, 2), ("mlp", 4, 1)]
    ):
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        options = {"run": {"model": model, "task": "mnist"}, "model": {"num_layers": layers}, "seed": seed}
        options["task"] = {"monitor": "val/error", "mode": "min"}
        OmegaConf.save(OmegaConf.create(options), tmp_path / "runs" / str(number) / "config.yaml")
        result = {"status": "completed", "best": {"val/error": layers / 100}, "test": {"test/error": seed / 100}}
        (tmp_path / "runs" / str(number) / "result.json").write_text(json.dumps(result))
    (table,) = make_tables(runs := find_runs([tmp_path / "runs"]))
    assert sorted((mark.kind, mark.sizes["model.num_layers"], mark.best, test) for mark, test in _scores(table)) == [
        ("grid3d", 1, 0.01, 0.01),
        ("grid3d", 16, 0.16, 0.01),
        ("grid3d", 16, 0.16, 0.02),
        ("mlp", 4, 0.04, 0.01),
    ]
    report([tmp_path / "runs"], tmp_path)
    assert (tmp_path / "scores_by_depth.png").read_bytes().startswith(b"\x89PNG")
    assert depth_picture(make_tables(runs[1:3])) is None, "of one depth"
    assert depth_picture(make_tables([runs[0], runs[3]])) is None, "each network has one depth"
    for run in runs:
        run.result[SOLVED] = None
    assert depth_picture(make_tables(runs)) is None, "samples_to_solve.png shows runs with a criterion"


@pytest.mark.parametrize(("worst", "scale"), [(0.05, "linear"), (0.9, "log")])
def test_one_failed_run_does_not_flatten_the_picture(worst: float, scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {1: 0.02, 4: 0.01, 16: worst}
    runs = [
        Run(
            Path(str(depth)),
            config={"run.model": "grid3d", "task.monitor": "val/error", "task.mode": "min", "model.num_layers": depth},
            result={"status": "completed", "best": {"val/error": error}, "test": {"test/error": error}},
        )
        for depth, error in errors.items()
    ]
    figures = []
    monkeypatch.setattr("gridlstm.report.sizes.to_png", figures.append)
    depth_picture(make_tables(runs))
    assert [axes.get_yscale() for axes in figures[0].axes] == [scale, scale]


def test_tests_of_several_lengths_are_drawn_by_length() -> None:
    config = {"run.model": "grid2d", "task.monitor": "val/accuracy", "task.mode": "max"}
    tests = [
        {"test/accuracy": 0.7, "test/accuracy_20_digits": 0.5, "test/accuracy_9_digits": 0.9},
        {"test/accuracy": 0.8, "test/accuracy_20_digits": 0.7, "test/accuracy_9_digits": 0.9},
    ]
    runs = [
        Run(Path(str(n)), config | {"seed": n}, {"status": "completed", "test": test}) for n, test in enumerate(tests)
    ]
    (table,) = tables = make_tables(runs)
    (lines,) = [by_length(group, table.monitor) for group in table.groups]
    assert lines == {("test/accuracy", "digits"): {9: (0.9, 0.9, 0.9), 20: (pytest.approx(0.6), 0.5, 0.7)}}
    assert list(lines["test/accuracy", "digits"]) == [9, 20], "the lengths must be in ascending order"
    drawn = length_picture(tables)
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")
    runs[0].result["test"] = runs[1].result["test"] = {"test/accuracy": 0.7}
    assert length_picture(make_tables(runs)) is None


def test_report_includes_incomplete_run_directories(tmp_path: Path) -> None:
    """The report accepts a missing configuration, NaN metrics and a repeated directory, but refuses damaged files."""
    directory = tmp_path / "runs" / "one"
    directory.mkdir(parents=True)
    found = {"status": "completed", "task": "a", "monitor": "val/loss", "best": {"val/loss": math.nan}}
    (directory / "result.json").write_text(json.dumps(found | {"test": {"test/loss": math.nan, "test/x": 1.5}}))
    (directory / "metrics.csv").write_text("step,samples,val/loss\n1,10,2.5\n2,20,nan\n")
    lines = report([tmp_path / "runs", tmp_path / "runs" / ".." / "runs"], tmp_path / "out")
    assert lines == ["1 run: 1 completed."]
    assert "| 1.5 |" in (tmp_path / "out" / "report.md").read_text()
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "out" / "report.html").read_text(), re.DOTALL)
    assert data is not None
    json.loads(data[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    (directory / "metrics.csv").write_text("step,samples,val/loss\n1,10,2.5e-\n")
    with pytest.raises(UserError, match=r"metrics\.csv is damaged: .*2\.5e-"):
        find_runs([tmp_path / "runs"])
    (directory / "metrics.csv").unlink()
    (directory / "result.json").write_text(json.dumps({"status": "completed", "best": None, "samples": None}))
    assert report([tmp_path / "runs"], tmp_path / "out") == ["1 run: 1 completed."]
    (directory / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        find_runs([tmp_path / "runs"])
    (directory / "config.yaml").unlink()
    (tmp_path / "runs" / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep\.json is damaged: it lists no jobs"):
        find_runs([tmp_path / "runs"])
    (tmp_path / "runs" / "sweep.json").unlink()
    (directory / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"result\.json is damaged: it is not a JSON object"):
        find_runs([tmp_path / "runs"])
    for out in (directory / "result.json", directory / "result.json" / "below"):
        with pytest.raises(UserError, match=r"result\.json is a file. Give a directory"):
            places([str(tmp_path)], out)


def test_report_names_runs_on_files_that_are_not_the_published_ones(tmp_path: Path) -> None:
    for name, files in (("genuine", {}), ("substitute", {"foreign_files": ["train-labels-idx1-ubyte.gz"]})):
        (tmp_path / "runs" / name).mkdir(parents=True)
        found = {"status": "completed", "task": "mnist", "monitor": "val/error", "best": {"val/error": 0.5}}
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps(found | files))
    lines = report([tmp_path / "runs"], tmp_path / "out")
    assert len(lines) == 2
    assert lines[1].endswith("runs/substitute: on other data than the published: train-labels-idx1-ubyte.gz")
    assert "* `../runs/substitute`: train-labels-idx1-ubyte.gz\n" in (tmp_path / "out" / "report.md").read_text()
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "out" / "report.html").read_text(), re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["other"] == [{"name": "../runs/substitute", "files": "train-labels-idx1-ubyte.gz"}]


def test_runs_without_configuration_are_distinguished_by_their_result(tmp_path: Path) -> None:
    def result(model: str, seed: int) -> dict[str, Any]:
        said = {"task": "text", "model": model, "experiment": "some", "seed": seed, "monitor": "val/loss"}
        return {"status": "completed", "best": {"val/loss": float(seed)}, **said}

    runs = [Run(tmp_path / f"{model}-{seed}", {}, result(model, seed)) for model, seed in (("rnn", 1), ("gru", 1))]
    runs.append(Run(tmp_path / "rnn-2", {}, result("rnn", 2)))
    config = {"run.task": "text", "run.model": "lstm", "task.monitor": "val/loss", "seed": 3}
    runs.append(Run(tmp_path / "lstm-3", config, result("lstm", 3), {"seed": "3"}))
    (table,) = make_tables(runs)
    assert table.varied == ("model",)
    assert {row[:2] for row in evidence(table).rows} == {("rnn", "1, 2"), ("gru", "1"), ("lstm", "3")}


def test_a_row_whose_runs_were_all_interrupted_has_evidence_too(tmp_path: Path) -> None:
    """The report still compares the curves of the row, such as samples to a threshold."""
    said = {"task": "text", "seed": 1, "monitor": "val/loss", "best": {"val/loss": 1.0}, "device": "some CPU"}
    runs = [
        Run(tmp_path / model, {}, said | {"status": status, "model": model, "commit": f"{model}123"})
        for model, status in (("rnn", "completed"), ("gru", "interrupted"))
    ]
    rows = {row[0]: row for row in evidence(make_tables(runs)[0]).rows}
    assert rows["rnn"][1:5] == ("1", None, "some CPU", "rnn123")
    assert rows["gru"][1:5] == ("1 (not completed)", None, "some CPU", "gru123")


def test_runs_behind_links_are_found_and_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, links = tmp_path / "there", tmp_path / "links"
    for name in ("a", "b"):
        (there / name).mkdir(parents=True)
        (there / name / "result.json").write_text('{"status": "completed"}')
    (there / "sweep.json").write_text(json.dumps({"jobs": [{"name": "a", "overrides": ["model=rnn"]}]}))
    links.mkdir()
    (links / "a").symlink_to(there / "a")
    (links / "round").symlink_to(links)
    (tmp_path / "again").symlink_to(there)
    assert [run.directory for run in find_runs([links])] == [links / "a"]
    runs = find_runs([links, there, tmp_path / "again"])
    assert [run.directory for run in runs] == [links / "a", there / "b"]
    assert runs[0].overrides == {"model": "rnn"}, "sweep.json, which is not behind the link, must be read too"
    scan = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="there/b cannot be read: Permission denied"):
        find_runs([there])


def test_output_directory_is_checked_before_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places([str(tmp_path)], Path("~/new/one"))[1] == tmp_path / "new" / "one"
    with pytest.raises(UserError, match="several directories needs an output directory"):
        places(["a", "b"], None)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=f"out={tmp_path}/new cannot be written: no permission for {tmp_path}"):
        places([str(tmp_path)], Path("~/new"))


def test_foreign_files_are_not_reported_as_runs(sweep: Path) -> None:
    before = len(find_runs([sweep]))
    for name, text in (("aaa", "a: 1\n"), (".venv/lib", "a: 1\n"), ("list", "[1, 2]\n")):
        (sweep / name).mkdir(parents=True)
        (sweep / name / "config.yaml").write_text(text)
    (sweep / ".venv" / "config.yaml").write_text("{")
    assert len(find_runs([sweep])) == before


def test_rows_are_ranked_and_grouped_by_option_values(tmp_path: Path) -> None:
    """ "true" equals True, two $ are not a formula, and a run without a criterion is neither solved nor unsolved."""

    def run(name: str, tied: Any, solved: int | None, seed: int, **overrides: str) -> Run:
        config = {"run.model": "grid2d", "model.tied": tied, "task.monitor": "val/accuracy", "seed": seed}
        result = {"status": "completed", SOLVED: solved, "best": {"val/accuracy": 1.0}}
        curve = {"val/accuracy": [(1.0, 0.5)]}
        return Run(tmp_path / name, config | {"task.mode": "max"}, result, {"note": "a$b$", **overrides}, curve)

    runs = [
        run("0", True, 100, 1),
        replace(run("1", True, None, 2), overrides={"note": "a$b$", "model.tied": "true"}),
        run("2", False, 900, 1, note="c_$_$"),
    ]
    (table,) = make_tables(runs)
    assert table.varied == ("note", "model.tied")
    assert [row[:2] for row in table.rows] == [("c_$_$", "false"), ("a$b$", "true")], "1 of 1 ranks above 1 of 2"
    assert picture([table]).startswith(b"\x89PNG")
    runs.append(replace(run("3", False, None, 2, note="c_$_$"), result={"status": "failed", SOLVED: None}))
    runs.append(replace(runs[-1], directory=tmp_path / "4", config=runs[-1].config | {"seed": 3}))
    (table,) = make_tables(runs)
    solved = [row[table.columns.index("solved")] for row in table.rows]
    assert solved == ["1 of 2", "1 of 3"], "diverged runs have not solved the task"
    (table,) = make_tables([*runs[:-1], replace(runs[-1], result={"status": "failed"})])
    solved = [row[table.columns.index("solved")] for row in table.rows]
    assert sorted(solved) == ["1 of 2", "1 of 2"], "a run that never trained is not counted"
    (table,) = make_tables([*runs[:-1], replace(runs[-1], result={"status": "failed", SOLVED: 800})])
    assert [row[table.columns.index("solved")] for row in table.rows] == ["2 of 3", "1 of 2"], (
        "a solved run may fail in its test"
    )
    alone = replace(runs[0], config=runs[0].config | {"model.tied": "x"}, overrides={"note": "x"})
    alone = replace(alone, result={"status": "failed", SOLVED: 5, "best": {"val/accuracy": 1.0}})
    (table,) = make_tables([*runs, alone])
    assert [row[0] for row in table.rows] == ["x", "a$b$", "c_$_$"], (
        "x was solved by all its runs, although a test failed"
    )
    del runs[3:]
    del runs[2].result[SOLVED]
    (table,) = make_tables(runs)
    assert {row[1]: row[table.columns.index("solved")] for row in table.rows} == {"true": "1 of 2", "false": None}


def test_repeated_seed_counts_once(tmp_path: Path) -> None:
    config = {"run.model": "x", "task.monitor": "val/loss", "task.mode": "min", "seed": 1}
    runs = [Run(tmp_path / str(n), config, {"status": "completed", "best": {"val/loss": 1.0}}) for n in range(2)]
    (table,) = make_tables(runs)
    assert table.rows[0][table.columns.index("seeds")] == "1 in 2 runs"


def test_mean_over_fewer_seeds_reports_their_number(tmp_path: Path) -> None:
    def run(seed: int, best: float | None, test: float | None) -> Run:
        config = {"run.model": "x", "task.monitor": "val/loss", "task.mode": "min", "seed": seed}
        result = {"status": "completed", "best": {"val/loss": best}, "test": {"test/loss": test, "test/bpc": 1.0}}
        return Run(tmp_path / str(seed), config, result)

    (table,) = make_tables([run(1, 1.0, None), run(2, 2.0, 3.0), run(3, None, None)])
    assert table.rows[0][table.columns.index("seeds")] == "3 (val/loss over 2, test/loss over 1)"


def test_choices_from_experiment_and_command_line_match(tmp_path: Path) -> None:
    """A choice is the same whether an experiment or the command line makes it; a reference is shown resolved."""
    for name, given in (("a", ["scheduler=cosine", "trainer.max_steps=${gridlstm.steps:80}"]), ("b", []), ("c", [])):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(json.dumps(given))
        said = {"hydra": {"runtime": {"choices": {"scheduler": "one_cycle" if name == "c" else "cosine"}}}}
        (tmp_path / name / ".hydra" / "hydra.yaml").write_text(json.dumps(said))
        task, trainer = {"monitor": "val/loss", "mode": "min"}, {"max_steps": 20 if name == "a" else 10}
        (tmp_path / name / "config.yaml").write_text(
            json.dumps(
                {
                    "seed": 1,
                    "run": {"model": "x", "name": name},
                    "task": task,
                    "trainer": trainer,
                    "scheduler": {"warmup": 0.05 * (name == "c")},
                }
            )
        )
    (table,) = make_tables(find_runs([tmp_path]))
    assert table.varied == ("scheduler", "trainer.max_steps")
    assert {row[:2] for row in table.rows} == {("cosine", "20"), ("cosine", "10"), ("one_cycle", "10")}


def test_a_resumed_run_is_shown_with_its_latest_options(tmp_path: Path) -> None:
    """Its sweep's overrides are older than its config.yaml. Lists and choices are shown as they were typed."""
    given = {"trainer.max_steps": "10", "stages": "[fit]", "scheduler": "none"}
    config = {"run.model": "x", "stages": ["fit"], "scheduler": None, "task.monitor": "val/loss"}
    runs = [
        Run(tmp_path / str(steps), config | {"trainer.max_steps": steps}, {}, given, choices={"scheduler": "none"})
        for steps in (10, 20)
    ]
    assert [[run.setting(key) for key in given] for run in runs] == [["10", "[fit]", "none"], ["20", "[fit]", "none"]]
    (table,) = make_tables(runs)
    assert {row[0] for row in table.rows} == {"10", "20"}


def test_a_run_that_failed_before_it_read_its_data_shares_the_row_of_the_other_seeds(tmp_path: Path) -> None:
    options = {"run": {"model": "x", "task": "text"}, "task": {"monitor": "val/loss", "mode": "min", "path": "a.txt"}}
    for seed in (1, 2, 3):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "config.yaml").write_text(json.dumps(options | {"seed": seed}))
        result = {"status": "completed", "best": {"val/loss": 1.0}, "data": 1, "test_data": 2}
        result = result if seed < 3 else {"status": "failed", "error": "no memory"}
        (tmp_path / str(seed) / "result.json").write_text(json.dumps(result))
    (table,) = make_tables(find_runs([tmp_path]))
    (row,) = table.rows
    assert row[table.columns.index("not completed")] == "seed 3 failed"
    assert table.varied == ("model",), "checksums that the failed run lacks distinguish no rows"


def test_runs_are_ranked_within_their_task(tmp_path: Path) -> None:
    """The ranking includes a run that never began and left only its command line."""
    judged = {"task.monitor": "val/accuracy", "task.mode": "max"}
    runs = [
        Run(
            tmp_path / f"{task}-{model}",
            {"run.task": task, "run.model": model, "seed": 1, **judged},
            {"status": "completed", "best": {"val/accuracy": score}},
            {"task": task, "model": model},
            {"val/accuracy": [(1.0, score)]},
        )
        for task, model, score in (("addition", "a", 0.5), ("parity", "a", 0.9), ("parity", "b", 0.8))
    ]
    runs.append(Run(tmp_path / "lost", overrides={"task": "addition", "model": "b"}))
    tables = make_tables(runs)
    assert [table.title for table in tables] == ["addition: val/accuracy", "parity: val/accuracy"]
    assert [[row[0] for row in table.rows] for table in tables] == [["a", "b"], ["a", "b"]]
    assert [len(table.groups) for table in tables] == [2, 2]
    assert "## parity: val/accuracy" in markdown(tables, runs, tmp_path, [])
    (alone,) = make_tables(runs[1:3])
    assert alone.title == "val/accuracy"


def test_script_tags_in_names_are_escaped(tmp_path: Path) -> None:
    notes = ["<!--<script>", "</script>"]
    runs = [Run(tmp_path / str(len(note)), {"run.model": "x", "note": note}, {}, {"note": note}) for note in notes]
    found = re.search(r'id="data">(.*?)</script>', page(make_tables(runs), runs, tmp_path), re.DOTALL)
    assert found is not None
    assert "<" not in found[1]
    (table,) = json.loads(found[1])["tables"]
    assert sorted(group["label"] for group in table["groups"]) == sorted(f"note={note}" for note in notes)


def test_the_picture_has_room_for_long_names(tmp_path: Path) -> None:
    """Without room, matplotlib only warns and squeezes the curves into a strip beside their names."""
    curve = {"val/accuracy": [(1.0, 0.5), (2.0, 0.6)]}
    names = [f"model=grid2d, model.hidden_size={n}, trainer.max_steps={n}, task.data.num_val=15, x=" for n in range(7)]
    groups = [
        Group({"note": name + "y" * 99}, (Run(tmp_path / name, {"run.model": name}, {}, {}, curve),)) for name in names
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture([Table("val/accuracy", "max", (), (), (), tuple(groups))])


def test_pictures_name_options_without_their_paths_unless_two_would_be_alike() -> None:
    names = short_names(["model", "model.num_layers", "model.hidden_size", "task.network.hidden_size", "task.lr"])
    settings = {"model": "grid2d", "model.num_layers": "7", "model.hidden_size": "$5", "task.lr": "0.1"}
    assert labeled(settings, names) == r"grid2d, layers=7, model.hidden_size=\$5, lr=0.1"
    assert names["task.network.hidden_size"] == "task.network.hidden_size"


def test_wrong_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(UserError, match="holds no runs"):
        find_runs([tmp_path])
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        find_runs([tmp_path])
    for arguments, words in (
        ([], "DIRECTORY"),
        ([str(tmp_path), "color=red"], "no option color"),
        (["a", "b"], "out="),
    ):
        done = run_python("-m", "gridlstm.report", *arguments)
        assert done.returncode == 1
        assert words in done.stderr


CHECK = """
<script>
const found = {errors: window.errors};
const column = name => [...document.querySelectorAll("th")].findIndex(th => th.textContent === name);
const rows = () => [...document.querySelector("tbody").rows];  // of the first table
const cells = name => rows().map(tr => tr.cells[column(name)].textContent);
const click = name => document.querySelectorAll("th")[column(name)].click();
found.before = cells("model");
click("parameters"); found.up = cells("parameters");
click("parameters"); found.down = cells("parameters");
found.links = [...document.querySelectorAll("td a")].map(a => a.getAttribute("href"));
found.lines = document.querySelectorAll("polyline").length;
const svg = document.querySelector("svg"), box = svg.getBoundingClientRect();
const pointer = (type, x, y) => svg.dispatchEvent(
  new PointerEvent(type, {clientX: box.left + x * box.width, clientY: box.top + y * box.height}));
const first = () => document.querySelector("polyline").getAttribute("points");
const whole = first();
for (let x = 0; x < 1; x += .02) for (let y = 0; y < 1; y += .02) {
  pointer("pointermove", x, y);
  const note = svg.nextElementSibling.textContent.trim();
  if (note) found.hover = note;
}
pointer("pointerdown", .3, .3); pointer("pointermove", .6, .6); pointer("pointerup", .6, .6);
found.zoomed = first() !== whole;
svg.dispatchEvent(new MouseEvent("dblclick"));
found.restored = first() === whole;
found.requests = performance.getEntriesByType("resource").length;
document.body.innerHTML = "";
document.body.append("FOUND" + JSON.stringify(found) + "DNUOF");
</script>
"""


def chromium(*arguments: str) -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium: install the package chromium to test the page in a browser")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=5000"]
    done = subprocess.run([program, *options, *arguments], capture_output=True, text=True, check=True, timeout=PATIENCE)
    return done.stdout


def test_the_page_works_in_a_browser(sweep: Path, tmp_path: Path) -> None:
    report([sweep], sweep)
    page = (sweep / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\((?!#)", page), (
        "the page must load nothing from the network"
    )
    listen = "<script>window.errors = []; window.onerror = message => { window.errors.push(message); };</script>"
    (sweep / "checked.html").write_text(page.replace("<head>", f"<head>{listen}").replace("</body>", f"{CHECK}</body>"))
    dumped = chromium("--dump-dom", (sweep / "checked.html").as_uri())
    found = json.loads(dumped.rsplit("DNUOF", 1)[0].rsplit("FOUND", 1)[1].replace("&lt;", "<").replace("&amp;", "&"))
    assert found["errors"] == []
    assert set(found["before"]) == {"grid2d", "stacked_lstm"}
    numbers = [int(text.replace(",", "")) for text in found["up"] if text]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 1
    assert found["up"][-1] == found["down"][-1] == "", "unknown values come last in both orders"
    assert [text for text in found["down"] if text] == [text for text in found["up"] if text][::-1]
    assert len(found["links"]) == 4
    assert all((sweep / link).is_file() for link in found["links"])
    assert found["lines"] == 3, "each run with a validation has a curve"
    assert re.search(r"seed \d: val/accuracy [\d.]+ after \d+ samples", found["hover"])
    assert found["zoomed"]
    assert found["restored"]
    assert found["requests"] == 0
