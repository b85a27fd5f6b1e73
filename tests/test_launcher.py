"""A sweep starts new processes for each job, survives failing jobs, ends them at Ctrl-C and keeps finished jobs."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from tests.conftest import PATIENCE, ROOT, TOO_MANY_LAYERS, compose, python, run_python, wait_for

from gridlstm.errors import UserError
from gridlstm.files import write_text
from gridlstm.multirun.devices import Demand, Pool, demand
from gridlstm.multirun.jobs import Job, plan
from gridlstm.multirun.launch import Launch
from gridlstm.multirun.process_tree import _groups_below
from gridlstm.multirun.start import Process, environment
from gridlstm.multirun.table import LiveTable, Row, lines, sweep_seconds_left
from gridlstm.training.job import run_job
from hydra_plugins.gridlstm_launcher.process_launcher import ProcessLauncher

SMALL = ["logger=csv", "model.num_layers=1", "model.hidden_size=4", "task.length=2", "task.data.num_test=15"]


def command(*arguments: str) -> list[str]:
    return [str(ROOT / "train.py"), "-m", *SMALL, *arguments]


def sweep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_python(*command(*arguments, "hydra.sweep.dir=sweep", "debug=smoke"), cwd=cwd)


def results(cwd: Path) -> dict[str, dict[str, Any]]:
    """Return the content of every job's result.json by the name of its directory."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(cwd.glob("sweep/*/result.json"))}


def processes_with(*texts: str) -> list[int]:
    """Return the running processes whose command line contains all ``texts``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if all(text.encode() in line for text in texts):
            found.append(int(path.parent.name))
    return found


def processes_of(directory: Path) -> list[int]:
    """Return the running processes whose working directory is in a directory, or whose command line names it."""
    found = processes_with(str(directory))
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink().is_relative_to(directory):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_the_table_shows_what_runs_and_how_long_it_will_take() -> None:
    done = Row("0-a", "seed=1", "completed", best=0.25, seconds=100)
    runs = Row("1-b", "seed=2", "running", step="10/40", best=0.5, seconds=20, seconds_left=60)
    waiting = [Row(f"{n}-c", f"seed={n}", "waiting") for n in (3, 4, 5)]
    # One job has 60 s left, and three waiting ones take (100 + 80) / 2 s each; two run at once.
    assert sweep_seconds_left([done, runs, *waiting], at_once=2) == (60 + 3 * 90) / 2
    assert sweep_seconds_left([done, runs], at_once=2) == 60
    assert sweep_seconds_left(waiting, at_once=2) is None
    assert sweep_seconds_left([done], at_once=2) is None
    table = lines([done, runs, *waiting], "val/loss", 165, width=70, height=5)
    assert table[0].split() == ["job", "state", "step", "time", "ETA", "best", "val/loss", "point"]
    assert table[1].split() == ["1-b", "running", "10/40", "0:00:20", "0:01:00", "0.5", "seed=2"]
    assert table[2].split() == ["3-c", "waiting", "seed=3"]
    assert table[3:] == ["… and 3 more", "1 running, 3 waiting, 1 completed; about 0:02:45 left"]
    assert all(len(line) <= 70 for line in table)


def test_a_log_line_stands_above_the_table() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    handler = logging.StreamHandler(terminal := Terminal())
    logging.getLogger().addHandler(handler)
    table = LiveTable("val/loss", 1, terminal)
    rows = [Row("0-a", "seed=1", "running")]
    try:
        with table.below_the_log():
            table.show(rows)
            logging.getLogger().warning("first")
            logging.getLogger().warning("second")
            table.show(rows)
    finally:
        logging.getLogger().removeHandler(handler)
    assert "\x1b[3A\x1b[0Jfirst\nsecond\n\x1b[2Kjob" in terminal.getvalue()
    assert handler.filters == []


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        (["hardware=cpu"], 4, Demand(1)),
        (["hardware=auto"], 0, Demand(1)),
        (["hardware=auto"], 4, Demand(1, gpus=1)),
        (["hardware=ddp_cpu"], 4, Demand(2)),
        (["hardware=ddp"], 4, Demand(4, gpus=4)),
        (["hardware=ddp", "trainer.devices=2"], 4, Demand(2, gpus=2)),
        (["hardware=gpu", "trainer.devices=[1,3]"], 4, Demand(2, gpus=2, chosen=True)),
    ],
)
def test_job_demand_counts_processes_and_gpus(options: list[str], gpus: int, expected: Demand) -> None:
    assert demand(compose(*options, "run.dir=d", "run.name=n").trainer, gpus) == expected


def test_several_machines_are_refused() -> None:
    with pytest.raises(UserError, match="num_nodes=2"):
        demand(compose("hardware=ddp", "trainer.num_nodes=2", "run.dir=d").trainer, 8)


def test_single_gpu_jobs_are_pinned_and_cores_are_not_oversubscribed() -> None:
    pool = Pool(gpus=("GPU-a", "GPU-b"), cores=8, jobs=None, threads=None)
    one = Demand(1, gpus=1)
    assert pool.threads_of(one, jobs=6) == 4
    first, second = pool.take(one, 4), pool.take(one, 4)
    assert first
    assert second
    assert pool.take(one, 4) is None
    pool.give_back(first)
    assert pool.take(Demand(2, gpus=2), 4) is None
    third = pool.take(one, 4)
    assert [share.gpus for share in (first, second)] == [("GPU-a",), ("GPU-b",)]
    assert third == first
    inside = environment({"RANK": "1", "HOME": "/h"}, one, first, threads=4, alone=False)
    assert inside == {"HOME": "/h", "CUDA_VISIBLE_DEVICES": "GPU-a", "OMP_NUM_THREADS": "4"}

    pool = Pool(gpus=(), cores=8, jobs=None, threads=None)
    two = Demand(2)
    assert pool.threads_of(two, jobs=2) == 2, "few jobs get more threads each"
    assert pool.threads_of(two, jobs=9) == 1
    assert [pool.take(two, 1) is not None for _ in range(5)] == [True] * 4 + [False]
    asked = Pool(gpus=("0",), cores=8, jobs=3, threads=None)
    assert [asked.take(one, 1) is not None for _ in range(4)] == [True] * 3 + [False], (
        "the user may share a GPU between jobs"
    )


def test_failures_are_contained_and_a_repeat_runs_missing_jobs(tmp_path: Path) -> None:
    done = sweep("model.tied=false", f"model.num_layers={TOO_MANY_LAYERS},1", "seed=4", cwd=tmp_path)
    first = results(tmp_path)
    assert list(first) == ["0-memorization-grid2d-s4", "1-memorization-grid2d-s4"]
    assert [result["status"] for result in first.values()] == ["failed", "completed"]
    assert done.returncode == 1
    assert "error: 1 of 2 jobs failed." in done.stderr
    for words in (
        "0-memorization-grid2d-s4: UserError",
        "these sizes need more memory than is available",
        "s4/console.log",
    ):
        assert words in done.stderr
    assert "1-memorization-grid2d-s4 (model.num_layers=1): completed after" in done.stdout

    # A sweep over other points keeps completed jobs and gives a new number to a new point.
    done = sweep("model.tied=false", "model.num_layers=1,2", "seed=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(1 more were completed earlier)" in done.stdout
    assert "not part of this sweep and not completed: 0-memorization-grid2d-s4\n" in done.stdout
    second = results(tmp_path)
    assert list(second) == [*first, "2-memorization-grid2d-s4"]
    assert [second[name] for name in first] == list(first.values())
    plan = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["name"] for job in plan] == list(second)
    assert "model.num_layers=2" in plan[2]["overrides"]


def test_job_numbers_are_unique(tmp_path: Path) -> None:
    """The name of a new point may differ from the name of the earlier job at its position."""

    def compose_named(overrides: list[str], number: int) -> tuple[DictConfig, str]:
        return OmegaConf.create(), f"{number}-{overrides[0]}"

    plan(tmp_path, [["a"], ["b"]], 0, compose_named).write(tmp_path)
    second = plan(tmp_path, [["a"], ["c"], ["d"]], 0, compose_named)
    assert [job.name for job in second.jobs] == ["0-a", "2-c", "3-d"]
    assert [row["number"] for row in second.rows] == [0, 1, 2, 3]


def test_equal_points_keep_their_jobs(tmp_path: Path) -> None:
    """A search may propose a point twice. A repeated sweep must then find both jobs."""

    def compose_named(overrides: list[str], number: int) -> tuple[DictConfig, str]:
        return OmegaConf.create(), f"{number}-{overrides[0]}"

    for _ in range(2):
        planned = plan(tmp_path, [["a"], ["a"]], 0, compose_named)
        planned.write(tmp_path)
        assert [job.name for job in planned.jobs] == ["0-a", "1-a"]


def test_job_that_finishes_despite_an_interrupt_counts_as_completed(tmp_path: Path) -> None:
    class Finishing:
        """A job that, when interrupted, still writes its result and ends."""

        def __init__(self, job: Job) -> None:
            self.job, self.over = job, False
            os.kill(os.getpid(), signal.SIGTERM)

        def state(self) -> str:
            return "running"

        def ended(self) -> str | None:
            return "" if self.over else None

        def interrupt(self) -> None:
            write_text(self.job.directory / "result.json", json.dumps({"status": "completed", "score": 0.5}))
            self.over = True

        def kill(self) -> None:
            pass

    jobs = [(Job(n, f"{n}", tmp_path / f"{n}", [], compose()), Demand(1)) for n in (0, 1)]
    launch = Launch(tmp_path, jobs, Pool((), 2, 1, 1), lambda job, *_: Finishing(job))
    with pytest.raises(SystemExit) as ended:
        launch.run()
    assert ended.value.code == 128 + signal.SIGTERM
    assert (jobs[0][0].result()["status"], launch.rows["0"].state) == ("completed", "completed")
    assert launch.rows["1"].state == "waiting"


def test_printed_report_command_is_shell_quoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    launcher = ProcessLauncher()
    launcher.config = OmegaConf.create({"hydra": {"sweeper": {}}})
    launcher._say_result(Path("my sweeps"), 1, [])
    assert caplog.messages == ["tables and curves: python -m gridlstm.report 'my sweeps'"]


# The time limit makes the sweep too short for an estimate.
LONG = ["hardware=ddp_cpu", "seed=1,2", "trainer.max_steps=1000000", "trainer.max_time=00:00:20:00"]
LONG += ["task.val_every=2", "task.data.num_val=2"]


@pytest.fixture(params=["warm", pytest.param("real", marks=pytest.mark.slow)])
def long_sweep(
    request: pytest.FixtureRequest, tmp_path: Path, _ctrl_c: None
) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Return a function that starts a long sweep; end the processes that are left after the test."""
    program = python() if request.param == "warm" else sys.executable
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [program, *command(*LONG, "hydra.sweep.dir=sweep")],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    try:
        yield start
    finally:  # processes are left if the test has failed
        for process in started:
            if process.poll() is None:
                process.terminate()
                process.communicate()
        for left in processes_of(tmp_path):
            os.kill(left, signal.SIGKILL)


def test_interrupted_sweep_ends_all_processes_and_resumes(
    tmp_path: Path, long_sweep: Callable[[], subprocess.Popen[str]]
) -> None:
    process = long_sweep()
    job = tmp_path / "sweep" / "0-memorization-grid2d-s1"
    wait_for(lambda: (job / "checkpoints" / "last.ckpt").exists())
    assert len(processes_with(f"hydra.run.dir='{job}'")) == 3, "torchrun and two ranks"
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGINT
    assert not processes_of(tmp_path)
    assert "Traceback" not in errors
    assert said.endswith(
        "interrupted: 2 of 2 jobs are not completed. To resume, repeat the command with hydra.sweep.dir=sweep\n"
    )
    result = results(tmp_path)[job.name]
    assert (result["status"], result["error"]) == ("interrupted", "interrupted")
    assert result["steps"] >= 2
    assert set(result["best"]) == {"val/accuracy", "checkpoint"}
    assert result["fit_seconds"] > 0
    assert (job / "metrics.csv").exists(), "rank 0 must have time to save its log"

    lines = len((job / "metrics.csv").read_text().splitlines())
    process = long_sweep()
    wait_for(lambda: len((job / "metrics.csv").read_text().splitlines()) > lines)
    assert len(processes_with("ckpt_path=last", str(tmp_path))) == 3
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert not processes_of(tmp_path)
    steps = [int(line.split(",")[0]) for line in (job / "metrics.csv").read_text().splitlines()[1:]]
    assert steps[0] == 2
    assert steps == sorted(set(steps))


def test_resumed_job_adds_the_seconds_of_earlier_attempts(tmp_path: Path, job: Callable[..., DictConfig]) -> None:
    one = Job(0, "run", tmp_path / "run", [], job())
    run_job(job("stages=[fit]"))
    path = one.directory / "result.json"
    earlier = json.loads(path.read_text()) | {"status": "interrupted", "error": "interrupted", "fit_seconds": 1000}
    path.write_text(json.dumps(earlier))
    one.begin()
    assert one.result().keys() == earlier.keys() - {"status", "error"}
    run_job(job("stages=[fit]", "ckpt_path=last", "trainer.max_steps=6"))
    found = one.result()
    assert found["fit_seconds"] > 1000
    assert (found["status"], found["steps"]) == ("completed", 6)
    for name in ("last.ckpt", "previous.ckpt"):
        (one.directory / "checkpoints" / name).unlink()
    one.begin()
    assert one.result() == {}, "without checkpoints it starts from scratch"
    run_job(job("stages=[fit]"))  # refused if checkpoints of another attempt exist


def test_resumed_job_adds_the_seconds_of_killed_attempts(tmp_path: Path, job: Callable[..., DictConfig]) -> None:
    """A killed attempt cannot record its seconds, but progress.json holds its training time."""
    one = Job(0, "run", tmp_path / "run", [], job())
    run_job(job("stages=[fit]"))
    result = one.result() | {"status": "running", "seconds": 10, "fit_seconds": 8}
    write_text(one.directory / "progress.json", json.dumps({"seconds": 1000}))
    write_text(one.directory / "result.json", json.dumps(result))
    one.begin()
    assert (one.result()["seconds"], one.result()["fit_seconds"]) == (10, 8), (
        "training was already recorded when the test was killed"
    )
    write_text(one.directory / "progress.json", json.dumps({"seconds": 1000}))
    del result["trained_to_end"]
    write_text(one.directory / "result.json", json.dumps(result))
    one.begin()
    assert (one.result()["seconds"], one.result()["fit_seconds"]) == (1010, 1008)
    one.begin()
    assert one.result()["seconds"] == 1010, "the seconds must be added only once"
    write_text(one.directory / "progress.json", json.dumps({"seconds": 500}))
    write_text(one.directory / "result.json", json.dumps(one.result() | {"status": "running"}))
    one.record_end("failed", "ended with signal 9")  # a sweep that is still running records this
    one.begin()
    assert one.result()["seconds"] == 1510


class Ended:
    """Job that has ended with exit status 0 and left a result."""

    def __init__(self, job: Job, result: dict[str, Any]) -> None:
        write_text(job.directory / "result.json", json.dumps(result))

    def state(self) -> str:
        return "running"

    def ended(self) -> str | None:
        return ""

    def interrupt(self) -> None:
        raise AssertionError("this job must not be interrupted")

    def kill(self) -> None:
        raise AssertionError("this job must not be killed")


def test_a_job_that_cannot_be_started_does_not_end_the_others(tmp_path: Path) -> None:
    """For example, SLURM may limit the number of jobs of one user."""
    started = []

    def start(job: Job, *_: object) -> Process:
        job.begin()
        if job.number == 0:
            raise UserError("SLURM refuses 0")
        started.append(job.number)
        return Ended(job, {"status": "completed", "score": 0.5})

    jobs = [(Job(n, f"{n}", tmp_path / f"{n}", [], compose()), Demand(1)) for n in (0, 1)]
    launch = Launch(tmp_path, jobs, Pool((), 2, 1, 1), start)
    launch.run()
    assert started == [1]
    assert [launch.rows[name].state for name in ("0", "1")] == ["failed", "completed"]
    assert jobs[0][0].result()["error"] == "SLURM refuses 0"


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ({"status": "completed", "score": None}, "ended with exit status 0 but left no score"),  # it was infinite
        ({"status": "failed", "error": "its own words"}, "its own words"),  # SLURM has forgotten how it ended
    ],
)
def test_a_job_without_a_score_has_failed(result: dict[str, Any], error: str, tmp_path: Path) -> None:
    def start(job: Job, *_: object) -> Process:
        job.begin()
        return Ended(job, result)

    one = Job(0, "0", tmp_path / "0", [], compose())
    Launch(tmp_path, [(one, Demand(1))], Pool((), 2, 1, 1), start).run()
    assert one.result()["status"] == "failed"
    assert one.result()["error"].startswith(error)


@pytest.mark.parametrize(("cores", "expected"), [(1, True), (2, False)])
def test_a_job_is_alone_only_if_it_has_all_cores(cores: int, expected: bool, tmp_path: Path) -> None:
    """torch uses all cores in a job that is alone, however many threads it was given."""
    told = []

    def start(job: Job, demand: Demand, share: object, threads: int, alone: bool) -> Process:
        told.append(alone)
        job.begin()
        return Ended(job, {"status": "completed", "score": 0.5})

    one = Job(0, "0", tmp_path / "0", [], compose())
    Launch(tmp_path, [(one, Demand(1))], Pool((), cores, jobs=1, threads=1), start).run()
    assert told == [expected]


def test_only_the_first_batch_of_a_search_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Recorded:
        def __init__(self, *_: object) -> None:
            pass

        def estimate(self) -> None:
            calls.append("estimate")

        def run(self) -> None:
            calls.append("run")

    monkeypatch.setattr("gridlstm.multirun.launch.Launch", Recorded)
    monkeypatch.setattr("hydra.core.utils.configure_log", lambda *_: None)
    launcher = ProcessLauncher()
    monkeypatch.setattr(launcher, "_prepare", lambda *_: ([], [], Pool((), 1, 1, 1), None))
    node = {"hydra_logging": None, "verbose": False, "job": {"env_set": {}}, "sweep": {"dir": str(tmp_path / "sweep")}}
    launcher.config = OmegaConf.create({"hydra": node | {"sweeper": {}}})
    for first in (0, 2):
        (tmp_path / "sweep").mkdir(exist_ok=True)
        launcher.launch([["seed=1"], ["seed=2"]], first)
    assert calls == ["estimate", "run", "run"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_hidden_processes_of_other_users_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path == Path("/proc/1/stat"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert os.getpgrp() in _groups_below(os.getppid())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can signal a process when its parent dies")
def test_killed_sweep_leaves_no_processes(tmp_path: Path, long_sweep: Callable[[], subprocess.Popen[str]]) -> None:
    process = long_sweep()
    wait_for(lambda: len(list(tmp_path.glob("sweep/*/progress.json"))) > 0)
    process.kill()
    process.communicate()
    wait_for(lambda: not processes_of(tmp_path))
