"""Two processes compute what one does: same global batch, same losses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(tmp_path: Path, text_file: Path, task: str, hardware: str, *overrides: str) -> Path:
    directory = tmp_path / hardware
    size = {"memorization": ["task.data.num_val=11", "task.data.num_test=11"]}.get(task, [f"task.path={text_file}"])
    small = ["task.data.window=10", "task.data.stream_length=100"] if task == "text" else ["task.length=2"]
    subprocess.run(
        [
            sys.executable, "train.py", f"task={task}", f"hardware={hardware}", "logger=csv", "model.hidden_size=6",
            "model.num_layers=2", "trainer.precision=64-true", "trainer.max_steps=12", "trainer.log_every_n_steps=1",
            "task.val_every=6", "task.data.batch_size=5", f"hydra.run.dir={directory}", *size, *small, *overrides,
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
        timeout=600,
    )  # fmt: skip
    return directory


@pytest.mark.parametrize("task", ["memorization", "text"])
def test_two_ranks_give_the_losses_of_one(tmp_path: Path, text_file: Path, task: str) -> None:
    """Five rows over two ranks: divided unevenly, weighted by count. A criterion ends both at the same step."""
    solved_at_once = [
        "callbacks=criterion",
        "callbacks.criterion.at_least=0",
        "trainer.max_steps=24",
        "task.val_every=12",
    ]
    options = solved_at_once if task == "memorization" else []
    one, two = (run(tmp_path, text_file, task, hardware, *options) for hardware in ("cpu", "ddp_cpu"))
    results = [json.loads((directory / "result.json").read_text()) for directory in (one, two)]
    assert [result["processes"] for result in results] == [1, 2]
    assert [result["steps"] for result in results] == [12, 12]
    assert [result.get("samples_to_solve") for result in results] == [60 if options else None] * 2
    with (one / "metrics.csv").open() as a, (two / "metrics.csv").open() as b:
        for row, other in zip(csv.DictReader(a), csv.DictReader(b), strict=True):
            for name, value in row.items():
                # float64 throughout; the ranks' sums are added in another order.
                assert float(value or 0) == pytest.approx(float(other[name] or 0), abs=1e-9), name


def test_a_run_of_two_ranks_is_resumed_by_one(tmp_path: Path, text_file: Path) -> None:
    """The checkpoint holds the recurrent state of all rows, whoever computed them."""
    two = run(tmp_path, text_file, "text", "ddp_cpu", "trainer.max_steps=6", "stages=[fit]")
    whole = run(tmp_path / "whole", text_file, "text", "cpu", "stages=[fit]")
    command = [f"ckpt_path={two}/checkpoints/last.ckpt", "stages=[fit]"]
    parts = run(tmp_path / "parts", text_file, "text", "cpu", *command)
    with (whole / "metrics.csv").open() as a, (parts / "metrics.csv").open() as b:
        rows = {row["step"]: row for row in csv.DictReader(b)}
        compared = [(row, rows[row["step"]]) for row in csv.DictReader(a) if row["step"] in rows]
    assert [row["step"] for row, _ in compared] == [str(step) for step in range(7, 13)]
    for row, other in compared:
        # Adam divides by the gradient's size, which turns rounding of the first steps into 1e-9 of a loss.
        assert float(row["train/loss"]) == pytest.approx(float(other["train/loss"]), abs=1e-7)
