"""A sweep: one fresh process a job, failures contained."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sweep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    small = ["logger=csv", "debug=smoke", "model.num_layers=1", "model.hidden_size=4", "task.length=2"]
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *small, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_failing_job_does_not_stop_the_next(tmp_path: Path) -> None:
    done = sweep("model.num_layers=0,1", "seed=4,5", "hydra.sweep.dir=sweep", cwd=tmp_path)
    directories = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [path.name for path in directories] == [f"{n}-memorization-grid2d-s{n % 2 + 4}" for n in range(4)]
    results = [json.loads((path / "result.json").read_text()) for path in directories]
    assert [result["status"] for result in results] == ["failed", "failed", "completed", "completed"]
    assert [result["seed"] for result in results] == [4, 5, 4, 5]
    assert "hidden_size and num_layers must be at least 1" in done.stderr
    assert done.returncode == 1
    assert "error: job 0 of the sweep failed" in done.stderr


def test_a_sweep_over_distributed_runs_does_not_sweep_on_every_rank(tmp_path: Path) -> None:
    """Stock Hydra starts rank 1 with the sweep's own command line: it would sweep once more, into another directory."""
    done = sweep("hardware=ddp_cpu", "seed=1,2", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directories = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [path.name for path in directories] == ["0-memorization-grid2d-s1", "1-memorization-grid2d-s2"]
    assert [json.loads((path / "result.json").read_text())["processes"] for path in directories] == [2, 2]
    assert not (tmp_path / "multirun").exists()
    assert not (tmp_path / "outputs").exists()


def test_distributed_jobs_are_refused_by_launchers_that_share_a_process(tmp_path: Path) -> None:
    done = sweep("hardware=ddp_cpu", "seed=1,2", "hydra/launcher=basic", cwd=tmp_path)
    assert done.returncode == 1
    assert "needs a process tree of its own" in done.stderr
