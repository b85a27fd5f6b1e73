"""A sweep: one fresh process tree a job, failures contained, all of it ended by Ctrl-C, finished jobs kept."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["logger=csv", "model.num_layers=1", "model.hidden_size=4", "task.length=2", "task.data.num_test=15"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "-m", *SMALL, *arguments]


def sweep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    given = [*arguments, "hydra.sweep.dir=sweep", "debug=smoke"]
    return subprocess.run(command(*given), cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def results(cwd: Path) -> dict[str, dict[str, Any]]:
    """result.json of every job, by directory."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(cwd.glob("sweep/*/result.json"))}


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits for something that a busy machine may take a minute to do."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def processes_with(text: str) -> list[int]:
    """Living processes whose command line holds ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text.encode() in line:
            found.append(int(path.parent.name))
    return found


def test_failures_are_contained_and_a_second_sweep_runs_only_what_is_missing(tmp_path: Path) -> None:
    done = sweep("model.num_layers=0,1", "seed=4,5", cwd=tmp_path)
    first = results(tmp_path)
    assert list(first) == [f"{n}-memorization-grid2d-s{n % 2 + 4}" for n in range(4)]
    assert [result["status"] for result in first.values()] == ["failed", "failed", "completed", "completed"]
    assert [result["seed"] for result in first.values()] == [4, 5, 4, 5]
    assert done.returncode == 1
    assert "error: 2 of 4 jobs failed." in done.stderr
    for words in (
        "0-memorization-grid2d-s4: UserError",
        "num_layers must be at least 1",
        "model.num_layers=0",
        "s5/console.log",
    ):
        assert words in done.stderr
    assert "completed after" in done.stdout
    assert "about" in done.stdout, "the time left is estimated once it can be"

    # Another set of points: what is completed is kept, and a new point gets a number of its own.
    done = sweep("model.num_layers=1,2", "seed=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(1 more completed earlier)" in done.stdout
    second = results(tmp_path)
    assert list(second) == [*first, "4-memorization-grid2d-s5"]
    assert [second[name] for name in first] == list(first.values())
    plan = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["name"] for job in plan] == list(second)
    assert "model.num_layers=2" in plan[4]["overrides"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_sweep(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C ends all ranks of all jobs, and a sweep in the same directory goes on where they were."""
    long = ["hardware=ddp_cpu", "seed=1,2", "trainer.max_steps=1000000", "task.val_every=2", "task.data.num_val=2"]
    process = subprocess.Popen(
        command(*long, "hydra.sweep.dir=sweep"),
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    job = tmp_path / "sweep" / "0-memorization-grid2d-s1"
    wait_for(lambda: (job / "checkpoints" / "last.ckpt").exists())
    assert len(processes_with(f"hydra.run.dir='{job}'")) == 3, "torchrun and two ranks"
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    wait_for(lambda: not processes_with(str(tmp_path)))
    if number == signal.SIGKILL:
        return
    assert process.returncode == 128 + number
    assert results(tmp_path)[job.name]["status"] == "interrupted"
    assert "Traceback" not in errors

    lines = len((job / "metrics.csv").read_text().splitlines())
    again = command(*long, "hydra.sweep.dir=sweep", "hydra.launcher.jobs=1")
    process = subprocess.Popen(again, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len((job / "metrics.csv").read_text().splitlines()) > lines)
    assert len(processes_with("ckpt_path=last")) == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    wait_for(lambda: not processes_with(str(tmp_path)))
    steps = [int(line.split(",")[0]) for line in (job / "metrics.csv").read_text().splitlines()[1:]]
    assert steps[0] == 2
    assert steps == sorted(set(steps))
