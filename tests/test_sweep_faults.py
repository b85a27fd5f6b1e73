"""Faults of sweeps with Hydra's and Lightning's own launchers, most of them silent, do not occur with this launcher.

With only ``hydra/launcher=basic``, Lightning starts rank 1 with the command line of the sweep, so every rank runs a
sweep of its own. The environment of a distributed job remains for the next job, which then trains on a part of the
data. Optuna gives every rank different parameters, and one W&B run records the metrics of all jobs. In all these cases
the exit status is 0. test_distributed.py tests the effects of a resume and of Lightning's sampler on ranks.
"""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import ROOT, run_python
from tests.wandb_records import read_back

from gridlstm.multirun.process_tree import ProcessTree, last_line

SMALL = [
    "model.num_layers=1", "model.hidden_size=4", "task.length=2", "task.data.num_val=15",
    "task.data.num_test=15", "trainer.max_steps=4", "task.val_every=1", "trainer.log_every_n_steps=1",
]  # fmt: skip


def sweep(*arguments: str, cwd: Path, logger: str = "csv") -> subprocess.CompletedProcess[str]:
    line = [str(ROOT / "train.py"), "-m", *arguments, *SMALL, f"logger={logger}"]
    return run_python(*line, cwd=cwd, environment={"WANDB_MODE": "offline"})


def import_from(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of jobs import modules from a directory."""
    path = [str(directory), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def results(cwd: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(cwd.glob("sweep/*/result.json"))}


def losses(path: Path) -> list[float]:
    with path.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file)]


def test_ranks_do_not_sweep_and_jobs_do_not_leak(tmp_path: Path) -> None:
    """A job with one rank sees its whole batch, although the job before it had two ranks."""
    ddp = ["trainer.accelerator=cpu", "trainer.strategy=ddp", "trainer.precision=64-true", "trainer.devices=2,1"]
    done = sweep(*ddp, "hydra.sweep.dir=sweep", "hydra.launcher.jobs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert [result["processes"] for result in found.values()] == [2, 1]
    assert [result["samples"] for result in found.values()] == [60, 60]
    two, one = (losses(tmp_path / "sweep" / name / "metrics.csv") for name in found)
    assert two == pytest.approx(one, abs=1e-9), "both have the same global batches, summed in different orders"
    # A rank that runs a sweep of its own makes more directories.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep"]
    assert len([path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]) == 2


def test_each_job_has_its_own_wandb_run_which_fails_with_it(tmp_path: Path) -> None:
    """In one process, the first job's run would record the metrics of the second, and succeed despite its failure."""
    done = sweep("hardware=ddp_cpu", "optimizer.lr=0.003,1e30", "hydra.sweep.dir=sweep", cwd=tmp_path, logger="wandb")
    assert done.returncode == 1
    found = results(tmp_path)
    assert [result["status"] for result in found.values()] == ["completed", "failed"]
    assert "loss became nan" in found["1-memorization-grid2d-s1"]["error"]
    runs = []
    for name in found:
        # Rank 1 must not write one.
        (file,) = (tmp_path / "sweep" / name / "wandb").glob("offline-run-*/run-*.wandb")
        runs.append(read_back(file))
    assert len({read["run"][0].run.run_id for read in runs}) == 2
    assert [read["exit"][0].exit.exit_code for read in runs] == [0, 1]
    steps = [[dict(item_of(item) for item in row.history.item) for row in read["history"]] for read in runs]
    assert sum("train/loss" in row for row in steps[0]) == 4, "the first run must have only its own four steps"


def item_of(item: Any) -> tuple[str, Any]:
    return item.key or "/".join(item.nested_key), json.loads(item.value_json)


def test_a_failing_rank_ends_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise rank 0 would wait in a collective operation for ever."""
    (tmp_path / "fragile.py").write_text(
        "import os, lightning as L\n"
        "class Fragile(L.Callback):\n"
        "    def on_train_batch_start(self, trainer, *_):\n"
        "        if trainer.global_rank == 1 and trainer.global_step == 2: os._exit(7)\n"
    )
    import_from(tmp_path, monkeypatch)
    fragile = "+callbacks.fragile={_target_: fragile.Fragile}"
    done = sweep("hardware=ddp_cpu", fragile, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: 1 of 1 jobs failed." in done.stderr
    assert "0-memorization-grid2d-s1/console.log" in done.stderr
    (result,) = results(tmp_path).values()
    assert result["status"] == "failed"
    assert "exitcode  : 7" in (tmp_path / "sweep" / "0-memorization-grid2d-s1" / "console.log").read_text()


def test_job_that_aborts_after_its_result_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late.py").write_text(
        "import atexit, os, lightning as L\n"
        "class Late(L.Callback):\n"
        "    def on_fit_start(self, *_): atexit.register(os.abort)\n"
    )
    import_from(tmp_path, monkeypatch)
    done = sweep("hardware=cpu", "+callbacks.late={_target_: late.Late}", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0-memorization-grid2d-s1 was completed, but then ended with SIGABRT" in done.stdout
    assert [result["status"] for result in results(tmp_path).values()] == ["completed"]


def test_the_best_value_is_returned_and_ranks_share_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_from(ROOT, monkeypatch)
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install gridlstm[optuna]")
    optuna = [
        "hydra/sweeper=search", "hydra.sweeper.n_trials=1",
        "optimizer.lr=interval(0.001,0.01)", "hydra.sweeper.study_name=study",
        "task.objective._target_=tests.finite.UndirectedLoss",
        "task.monitor=val/loss", "task.mode=max",  # the largest loss is not the last
        f"hydra.sweeper.storage=sqlite:///{tmp_path}/db", "hydra.sweep.dir=sweep", "hardware=ddp_cpu",
    ]  # fmt: skip
    for trials in (1, 2):  # the study continues in a new directory
        done = sweep(*optuna, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(results(tmp_path)) == trials
        assert "trials 1 to 1 of 1\n" in done.stdout
        assert (tmp_path / "sweep" / "multirun.yaml").exists(), "the report recognizes a sweep by it"
    found = results(tmp_path)
    best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    # The direction of the search is that of the task.
    assert best["best_value"] == max(result["score"] for result in found.values())
    rates = set()
    for name, result in found.items():
        with (tmp_path / "sweep" / name / "metrics.csv").open() as file:
            validated = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
        assert result["score"] == pytest.approx(max(validated), rel=1e-6), "a checkpoint's score is float32"
        assert validated[-1] < 0.999 * max(validated), "the best is not the last"
        assert result["processes"] == 2
        rates |= {word for word in result["command"].split() if word.startswith("optimizer.lr=")}
    assert len(rates) == 2, "both ranks of a trial must have the same parameters"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "sweep"], "no rank may run a sweep of its own"


@pytest.mark.parametrize("good", [True, False])
def test_search_continues_after_a_failed_trial(tmp_path: Path, good: bool) -> None:
    """A trial may fail because its learning rate is too high. Optuna's sweeper alone would then stop."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install gridlstm[optuna]")
    rates = "choice(0.01,1e30)" if good else "interval(1e29,1e30)"
    trials = ["hydra.sweeper.sampler.seed=8", "hydra.sweeper.n_trials=2"] if good else ["hydra.sweeper.n_trials=1"]
    search = ["hydra/sweeper=search", *trials]
    done = sweep(*search, "optimizer=sgd", f"optimizer.lr={rates}", "hydra.sweep.dir=sweep", cwd=tmp_path)
    states = {result["status"] for result in results(tmp_path).values()}
    if good:
        assert done.returncode == 0, done.stderr
        assert states == {"completed", "failed"}
        best = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
        assert best["best_params"] == {"optimizer.lr": 0.01}
    else:
        assert done.returncode == 1
        assert "error: 1 of 1 jobs failed." in done.stderr
        assert "Traceback" not in done.stderr
        assert states == {"failed"}


def test_a_search_in_the_wrong_direction_is_refused(tmp_path: Path) -> None:
    """Optuna alone always minimizes."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install gridlstm[optuna]")
    done = sweep("hydra/sweeper=optuna", "optimizer.lr=interval(0.1,3)", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: this search would minimize val/accuracy, but task.mode is max" in done.stderr


def test_searching_a_fixed_option_is_refused(tmp_path: Path) -> None:
    """Optuna's sweeper alone would train with the fixed value in every trial."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra: pip install gridlstm[optuna]")
    done = sweep("hydra/sweeper=search", "optimizer.lr=0.1", "optimizer.lr=interval(0.1,3)", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        "error: optimizer.lr=interval(0.1,3) would not be searched, because optimizer.lr=0.1 is also given"
        in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", ["process", "basic"])
def test_a_sweep_without_jobs_is_an_error(tmp_path: Path, launcher: str) -> None:
    """Hydra alone runs nothing and exits with status 0."""
    done = sweep("experiment=glob(nothing*)", f"hydra/launcher={launcher}", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: this sweep has no jobs: experiment=glob(nothing*) matches nothing." in done.stderr
    done = sweep("seed=range(3,3)", f"hydra/launcher={launcher}", cwd=tmp_path)
    assert done.returncode == 1
    assert "seed=range(3,3) has no values" in done.stderr


def test_a_wrong_number_of_parallel_jobs_is_refused(tmp_path: Path) -> None:
    done = sweep("hydra.launcher.jobs=0", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: hydra.launcher.jobs must be a whole number of at least 1 or null, got 0.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=1,2,1"], "error: seed=1,2,1 repeats 1"),
        (["model=grid2d,grid1d", "hydra.sweep.dir=new"], "error: 1 of 2 jobs cannot work, so none was started."),
        (["optimizer.lr=-1,0.01", "hydra.sweep.dir=new"], "Invalid learning rate: -1"),
        (
            ["callbacks=criterion", "callbacks.criterion.at_least=0.5,1.5", "hydra.sweep.dir=new"],
            "at_least must be above 0 and at most 1, got 1.5",
        ),
        (["model.tied=true,[sideways]", "hydra.sweep.dir=new"], "sideways"),
        (["model.sweep=auto,half-step", "hydra.sweep.dir=new"], "sweep=half-step needs two stages"),
        (["task.monitor=val/accuracy,val/foo", "hydra.sweep.dir=new"], "task.monitor must be one of val/loss"),
        (["task.delay=0,99999999999", "hydra.sweep.dir=new"], "do not fit into the memory of any machine"),
        (["trainer.num_nodes=2", "hydra.sweep.dir=new"], "Use hardware=slurm, or trainer.num_nodes=1"),
    ],
)
def test_invalid_sweep_is_refused_and_leaves_no_files(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = sweep(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    if "grid1d" in arguments[0]:
        assert "1-memorization-grid1d-s1: task=memorization takes a SequenceModel, but model=grid1d" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_over_experiments_that_declare_sweeps_is_an_error(tmp_path: Path) -> None:
    """Hydra alone ignores the sweeps that such experiments declare."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {seed: 'range(2)'}}}\n"
    )
    done = sweep("--config-dir", "mine", "experiment=adhoc,own", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: experiment=own declares a sweep (seed)" in done.stderr


def test_configuration_on_a_search_path_reaches_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\noptimizer: {lr: 0.125}\n")
    done = sweep(f"hydra.searchpath=[file://{tmp_path}/mine]", "experiment=own", "seed=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (config,) = tmp_path.glob("multirun/*/*/*/config.yaml")
    assert yaml.safe_load(config.read_text())["optimizer"]["lr"] == 0.125


def test_a_completed_job_whose_options_have_changed_is_named_and_kept(tmp_path: Path) -> None:
    """Hydra's own options reach the jobs too."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    words = ["--config-dir=mine", "experiment=own", "seed=1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=job",
             "+hydra.job.env_set.GRIDLSTM_DATA=/of/the/sweep"]  # fmt: skip
    for rate in (0.125, 0.25):
        own.write_text(f"# @package _global_\noptimizer: {{lr: {rate}}}\n")
        done = sweep(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "job was completed with other options" in done.stdout
    assert "optimizer.lr=0.25, in the earlier run 0.125" in done.stdout
    config = yaml.safe_load((tmp_path / "sweep" / "job" / "config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["data_dir"]) == (0.125, "/of/the/sweep")


def test_the_error_of_a_rank_is_told_instead_of_the_last_line(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_text("error: seed must be 0 or more, got -1.\nE1128 failed (exitcode: 1)\n=====\n-----\n")
    assert last_line(console) == "error: seed must be 0 or more, got -1."
    console.write_text("one\nlast words\n  =====\n")
    assert last_line(console) == "last words"


def test_the_error_of_an_earlier_attempt_is_not_that_of_a_later_one(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    for words in ("error: the first", "killed"):
        tree = ProcessTree([sys.executable, "-c", f"print({words!r})"], os.environ, console)
        while tree.ended() is None:
            time.sleep(0.01)
    assert last_line(console) == "killed"
    assert "error: the first" in console.read_text()


def test_distributed_jobs_are_refused_by_launchers_that_share_a_process(tmp_path: Path) -> None:
    done = sweep("hardware=ddp_cpu", "seed=1,2", "hydra/launcher=basic", cwd=tmp_path)
    assert done.returncode == 1
    assert "needs its own processes" in done.stderr
