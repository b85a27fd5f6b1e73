"""No command runs code that a run directory of somebody else names, unless the user trusts that code."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from tests.conftest import look_at

from gridlstm.dashboard import build as build_dashboard
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.report.__main__ import report
from gridlstm.report.runs import find_runs
from gridlstm.sample import write_samples
from gridlstm.training.job import run_job

JobIn = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def trained(job_in: JobIn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small language model; return its run directory."""
    root = tmp_path_factory.mktemp("trained")
    run_job(job_in(root, "stages=[fit]", task="text"))
    return root / "run"


@pytest.fixture
def plant(trained: Path) -> Any:
    """Return a function that puts a node into the configuration of the run and returns the run's checkpoint."""
    files = [trained / name for name in ("config.yaml", "config_source.yaml")]
    before = [file.read_bytes() for file in files]

    def planted(option: str, node: Any) -> Path:
        for file in files:
            config = OmegaConf.load(file)
            OmegaConf.update(config, option, node, force_add=True)
            OmegaConf.save(config, file)
        return trained / "checkpoints" / "best.ckpt"

    yield planted
    for file, content in zip(files, before, strict=True):
        file.write_bytes(content)


def runs_code(directory: Path, command: Callable[[], Any]) -> bool:
    """Return True if a command imports ``tests.hostile`` or runs its ``note``, which leaves a file."""
    try:
        command()
    finally:
        ran = (directory / "trace").exists() or "tests.hostile" in sys.modules
        (directory / "trace").unlink(missing_ok=True)
        sys.modules.pop("tests.hostile", None)
    return ran


NOT_NEEDED = (
    *("callbacks.progress", "callbacks.other", "logger.csv", "optimizer", "scheduler"),
    *("trainer.profiler", "trainer.strategy", "trainer.nested.deeper"),
)


def test_evaluation_instantiates_only_what_it_needs(plant: Any, tmp_path: Path, trained: Path) -> None:
    checkpoint = trained / "checkpoints" / "best.ckpt"
    expected = evaluate(checkpoint, "test", [])
    for option in NOT_NEEDED:
        plant(option, {"_target_": "tests.hostile.note", "file": str(tmp_path / "trace")})
    found: dict[str, float] = {}
    assert not runs_code(tmp_path, lambda: found.update(evaluate(checkpoint, "test", [])))
    assert found == expected
    assert not runs_code(tmp_path, lambda: write_samples(checkpoint, lambda _: None, length=3))
    assert not runs_code(tmp_path, lambda: look_at({"what": "gates", "ckpt": str(checkpoint), "out": str(tmp_path)}))


@pytest.mark.parametrize(
    ("option", "target"),
    [
        ("model", "tests.hostile.note"),
        ("task.data", "tests.hostile.note"),
        ("task.objective", "tests.hostile.note"),
        ("model.time", "tests.hostile.note"),
        ("model.depth_regularizers", "tests.hostile.note"),
        ("task.data.nested", "torch.load"),
        ("model.time", "gridlstm.data.corpus.zlib.decompress"),
        ("model.time", "gridlstm.models.base.torch.load"),
        ("model.time", "gridlstm.tasks.sequence.tree_map"),
        ("model.time", "gridlstm.multirun.process_tree.ProcessTree"),
    ],
)
def test_untrusted_code_is_not_run(option: str, target: str, plant: Any, tmp_path: Path) -> None:
    node = {"_target_": target, "file": str(tmp_path / "trace")}
    checkpoint = plant(option, [node] if option.endswith("regularizers") else node)
    commands: list[Callable[[], Any]] = [
        lambda: evaluate(checkpoint, "test", []),
        lambda: write_samples(checkpoint, lambda _: None, length=3),
        lambda: look_at({"what": "cells", "ckpt": str(checkpoint), "out": str(tmp_path)}),
    ]

    def refused() -> None:
        for command in commands:
            with pytest.raises(UserError, match=rf"{target} is code named by .* trust={target.rpartition('.')[0]}$"):
                command()

    assert not runs_code(tmp_path, refused)


def test_trusted_code_is_run(job_in: JobIn, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = ("task.data._target_=tests.finite.FiniteMemorization", "task.data.num_val=11", "task.data.num_test=11")
    with caplog.at_level("INFO"):
        run_job(job_in(tmp_path, *own))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert (
        f"evaluate again     python -m gridlstm.evaluate ckpt={checkpoint} trust=tests.finite split=test" in caplog.text
    )
    with pytest.raises(UserError, match=r"trust=tests\.finite$"):
        evaluate(checkpoint, "test", [])
    found = evaluate(checkpoint, "test", [], trust=["tests"])
    assert found == OmegaConf.load(tmp_path / "run" / "result.json").test


def test_reports_instantiate_nothing(plant: Any, tmp_path: Path, trained: Path) -> None:
    for option in ("model", "callbacks.progress", "logger.csv", "trainer.profiler"):
        plant(option, {"_target_": "tests.hostile.note", "file": str(tmp_path / "trace")})
    plant("logger.wandb", {"entity": None, "project": "gridlstm"})
    (trained / "wandb").mkdir(exist_ok=True)
    (trained / "wandb" / "run-id").write_text("some")
    assert not runs_code(tmp_path, lambda: report([trained], tmp_path))
    assert not runs_code(tmp_path, lambda: build_dashboard(find_runs([trained]), "some"))


def test_init_from_does_not_run_code_of_the_other_run(plant: Any, tmp_path: Path, trained: Path, job_in: JobIn) -> None:
    checkpoint = plant("task.data._target_", "tests.hostile.TextData")
    assert not runs_code(
        tmp_path, lambda: run_job(job_in(tmp_path, f"init_from={checkpoint}", "stages=[fit]", task="text"))
    )
