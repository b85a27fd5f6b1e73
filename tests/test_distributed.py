"""Two processes compute the same losses as one, because they share the same global batch."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PATIENCE, ROOT, compose, free_ports, python, wait_for

from gridlstm.files import read_json
from gridlstm.training.validate import _several_processes

DATA = {
    "memorization": ["task.data.num_val=11", "task.data.num_test=11", "task.length=2"],
    "text": ["task=text", "task.data.window=10", "task.data.stream_length=100"],
    "translation": [
        "task=tatoeba",
        "model=reencoder",
        "model.dropout=0.0",
        "optimizer.lr=0.05",
        "task.data.source.num_val=7",
        "task.data.source.num_test=7",
        "callbacks.learning_curve=null",
    ],
    "finite": ["task.data._target_=tests.finite.FiniteMemorization", "task.data.num_val=11", "task.data.num_test=11"],
}
SMALL = [
    "logger=csv", "model.hidden_size=6", "model.num_layers=2", "trainer.precision=64-true", "trainer.max_steps=12",
    "trainer.log_every_n_steps=4", "task.val_every=6", "task.data.batch_size=5",
]  # fmt: skip
COLOURS, ANIMALS = ("red", "big", "old", "new"), ("cat", "dog", "cow")
SENTENCES = [f"a {a} {b} sees {'the ' * n}{c}" for n, a in enumerate(COLOURS) for b in ANIMALS for c in ANIMALS]

Run = Callable[..., Path]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Run:
    """Return a function that runs train.py once for each directory, or again to resume, and returns the directory."""
    root, done = tmp_path_factory.mktemp("distributed"), set[str]()

    def run(name: str, task: str, *options: str) -> Path:
        if name in done and not any(option.startswith("ckpt_path") for option in options):
            return root / name
        done.add(name)
        data = [*DATA[task], *([f"task.path={text_file}"] if task == "text" else [])]
        if task == "translation":
            pytest.importorskip("sacrebleu")
            (root / "cmn.txt").write_text("".join(f"{line}\t{line.upper()}\n" for line in SENTENCES))
            data.append(f"data_dir={root}")
        line = [python(), "train.py", *SMALL, *data, f"hydra.run.dir={root / name}", *options]
        line.append(f"+callbacks.seen={{_target_: tests.finite.Seen, dir: {root / name}}}")
        subprocess.run(line, cwd=ROOT, env=environment(root), check=True, timeout=PATIENCE)
        return root / name

    return run


def one(run: Run, task: str) -> Path:
    return run(f"{task}-cpu", task, "hardware=cpu")


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def result(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return found


def seen(directory: Path, rank: int) -> dict[str, list[list[str]]]:
    """Return the rows of every batch of a rank by stage."""
    found: dict[str, list[list[str]]] = json.loads((directory / f"seen{rank}.json").read_text())
    return found


def assert_same_losses(one: Path, other: Path) -> None:
    for row, same in zip(rows(one), rows(other), strict=True):
        for name, value in row.items():
            # All numbers are float64; two ranks add the sums in another order.
            assert float(value or 0) == pytest.approx(float(same[name] or 0), abs=1e-9), name


@pytest.mark.parametrize("task", DATA)
def test_two_ranks_reproduce_the_losses_of_one(run: Run, task: str) -> None:
    """Five rows are divided unevenly over two ranks, so their losses must be weighted by count."""
    two = run(f"{task}-ddp_cpu", task, "hardware=ddp_cpu")
    assert result(two)["processes"] == 2
    assert_same_losses(one(run, task), two)


def test_two_ranks_translate_the_test_as_one_does(run: Run) -> None:
    """Two ranks search the seven sentences in other batches than one rank."""
    whole, two = (run(f"translation-{name}", "translation", f"hardware={name}") for name in ("cpu", "ddp_cpu"))
    assert (result(whole)["processes"], result(two)["processes"]) == (1, 2)
    assert result(whole)["test"]["test/bleu"] > 0
    assert result(two)["test"]["test/bleu"] == result(whole)["test"]["test/bleu"]
    tables = [(directory / "translations.tsv").read_text() for directory in (whole, two)]
    assert tables[0] == tables[1]
    translations = [line.split("\t")[1] for line in tables[0].splitlines()[1:]]
    assert len(translations) == 7
    assert len(set(translations)) > 1, "in an order that can be wrong"


def test_rank_without_validation_batches_does_not_block_others(run: Run) -> None:
    one_stream = "task.data.val_symbols=101"
    one, two = (run(f"one-stream-{name}", "text", f"hardware={name}", one_stream) for name in ("cpu", "ddp_cpu"))
    assert_same_losses(one, two)


def test_a_criterion_ends_all_ranks_at_the_same_step(run: Run) -> None:
    met_at_once = ["callbacks=criterion", "callbacks.criterion.metric=val/accuracy", "task.alphabet=2"]
    met_at_once += ["callbacks.criterion.at_least=0.01", "trainer.max_steps=24"]
    ended = result(run("criterion-ddp_cpu", "memorization", "hardware=ddp_cpu", *met_at_once))
    assert (ended["processes"], ended["steps"], ended["samples_to_solve"]) == (2, 6, 30)


@pytest.mark.parametrize("task", DATA)
def test_two_ranks_split_the_rows_of_one_in_order(run: Run, task: str) -> None:
    """Lightning's own sampler would shuffle ordered rows, and pad the evaluation with repeated samples."""
    whole = seen(one(run, task), 0)
    first, second = (seen(run(f"{task}-ddp_cpu", task, "hardware=ddp_cpu"), rank) for rank in (0, 1))
    assert [a + b for a, b in zip(first["train"], second["train"], strict=True)] == whole["train"]
    assert {(len(a), len(b)) for a, b in zip(first["train"], second["train"], strict=True)} == {(2, 3)}
    for stage in ("validate", "test"):
        parts = Counter(chain(*first[stage], *second[stage]))
        assert parts == Counter(chain(*whole[stage])), f"{stage}: every row must occur once"


def test_torchrun_on_two_nodes_trains_one_run(run: Run, tmp_path: Path) -> None:
    """Both nodes are on this machine, with one process each."""
    (port,) = free_ports(1)
    nodes = []
    for node in (0, 1):
        torchrun = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        line = [python(), "-m", "torch.distributed.run", *torchrun, f"--master-port={port}", "train.py"]
        line += [*SMALL, *DATA["memorization"], "trainer.accelerator=cpu", "trainer.strategy=ddp", "trainer.devices=1"]
        line += ["trainer.num_nodes=2", f"hydra.run.dir={tmp_path / 'nodes'}"]
        nodes.append(subprocess.Popen(line, cwd=ROOT, env=environment(tmp_path)))
    try:
        assert [node.wait(timeout=PATIENCE) for node in nodes] == [0, 0]
    finally:
        for left in nodes:
            left.kill()
    assert result(tmp_path / "nodes")["processes"] == 2
    assert_same_losses(one(run, "memorization"), tmp_path / "nodes")


@pytest.mark.parametrize(
    ("torchrun", "options", "message"),
    [
        ([], ["hardware=ddp_cpu", "trainer.num_nodes=2"], "Start torchrun --nnodes=2"),
        (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], ["hardware=ddp_cpu"],
            "error: each rank of torchrun would write to its own directory",
        ),
        (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
            ["hardware=ddp_cpu", "task.data.batch_size=1", "hydra.run.dir=run"],
            "task.data.batch_size=1 is global and cannot be divided over 2 processes",
        ),
    ],
)  # fmt: skip
def test_invalid_distributed_launches_are_refused(
    tmp_path: Path, torchrun: list[str], options: list[str], message: str
) -> None:
    line = [python(), *torchrun, str(ROOT / "train.py"), "logger=csv", *options]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "several"),
    [
        (["hardware=cpu", "trainer.num_nodes=2"], True),
        (["trainer.devices=[0,1]"], True),
        (["trainer.devices=auto"], True),
        (["trainer.devices=[0]"], False),
        (["hardware=cpu", "trainer.devices=auto"], False),
    ],
)
def test_processes_of_a_run_are_counted(monkeypatch: pytest.MonkeyPatch, options: list[str], several: bool) -> None:
    """On a machine with two GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _several_processes(compose(*options)) is several


def test_two_rank_run_resumes_on_two_ranks_or_one(run: Run) -> None:
    """The checkpoint holds the state of all rows. A run that resumes in its own directory also keeps its best score."""
    # The best checkpoint is chosen by the largest loss, so that it comes from the first half.
    undirected = "task.objective._target_=tests.finite.UndirectedLoss"
    largest = [undirected, "task.monitor=val/loss", "task.mode=max", "stages=[fit]"]
    two = run("two", "text", "hardware=ddp_cpu", "trainer.max_steps=6", *largest)
    best = result(two)["best"]
    there = f"ckpt_path={two}/checkpoints/last.ckpt"
    alone = {row["step"]: row for row in rows(run("alone", "text", "hardware=cpu", there, *largest))}
    run("two", "text", "hardware=ddp_cpu", "ckpt_path=last", *largest)
    whole = [row for row in rows(one(run, "text")) if row["train/loss"]]
    # The second row begins before the checkpoint and ends after it.
    assert [row["step"] for row in whole] == ["4", "8", "12"]
    for row, other in zip(whole, (row for row in rows(two) if row["train/loss"]), strict=True):
        assert row["step"] == other["step"]
        assert float(row["train/loss"]) == pytest.approx(float(other["train/loss"]), abs=1e-9)
        if int(row["step"]) > 6:
            assert float(row["train/loss"]) == pytest.approx(float(alone[row["step"]]["train/loss"]), abs=1e-9)
    assert result(two)["best"] == best, "the best score before the resume is the best of the whole run"
    assert result(two)["steps"] == 12
    before = rows(two)
    run("two", "text", "hardware=ddp_cpu", "ckpt_path=last", *largest[:-1], "stages=[fit,test]")
    after = [{name: x for name, x in row.items() if not name.startswith("test/")} for row in rows(two)]
    assert after == before, "with nothing left to train, its best weights are tested"
    assert result(two)["best"] == best
    assert result(two)["trained_to_end"]
    assert "test/loss" in result(two)["test"]


@pytest.mark.usefixtures("_ctrl_c")
def test_two_ranks_that_are_interrupted_leave_their_record(tmp_path: Path) -> None:
    """Lightning would kill rank zero seconds after the other rank ends, even if it has not written its record."""
    line = [sys.executable, "train.py", *SMALL, *DATA["memorization"], "hardware=ddp_cpu", "trainer.max_steps=1000000"]
    line += ["trainer.log_every_n_steps=1000", "task.val_every=1000", f"hydra.run.dir={tmp_path / 'run'}"]
    # The callback stands for a picture whose drawing takes longer than Lightning waits.
    line.append("+callbacks.slow={_target_: tests.finite.SlowEnd, seconds: 7}")
    process = subprocess.Popen(line, cwd=ROOT, env=environment(tmp_path), start_new_session=True)
    try:
        # By the first step, all ranks have installed their signal handlers.
        progress = tmp_path / "run" / "progress.json"
        wait_for(lambda: bool(read_json(progress).get("step")) or process.poll() is not None)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # a terminal does the same
        assert process.wait(timeout=PATIENCE) == 128 + signal.SIGINT
    finally:
        process.kill()
    assert result(tmp_path / "run")["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_failing_rank_lets_rank_zero_record_the_error(tmp_path: Path) -> None:
    """Torchrun ends all ranks when one fails. Rank zero must close its loggers before it records the run."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [python(), *torchrun, "train.py", *SMALL, *DATA["memorization"], "hardware=ddp_cpu", "optimizer.lr=1e30"]
    line += [f"hydra.run.dir={tmp_path / 'run'}", "logger.csv._target_=tests.finite.SlowLogger"]
    line.append(f"+callbacks.second={{_target_: tests.finite.FailSecond, dir: {tmp_path / 'run'}}}")
    assert subprocess.run(line, cwd=ROOT, env=environment(tmp_path), timeout=PATIENCE, check=False).returncode == 1
    ended = result(tmp_path / "run")
    assert ended["status"] == "failed"
    assert "the training loss grew" in ended["error"]


def test_single_failing_rank_fails_the_run(tmp_path: Path) -> None:
    """Rank zero loses its connection and then receives the signal of an interruption."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [python(), *torchrun, "train.py", *SMALL, *DATA["memorization"], "hardware=ddp_cpu"]
    line += [f"hydra.run.dir={tmp_path / 'run'}", "+callbacks.alone={_target_: tests.finite.FailAlone}"]
    assert subprocess.run(line, cwd=ROOT, env=environment(tmp_path), timeout=PATIENCE, check=False).returncode == 1
    ended = result(tmp_path / "run")
    assert ended["status"] == "failed"
    assert ended["error"] == "rank 1: RuntimeError: of its own"
    assert not list((tmp_path / "run").glob(".error*"))
