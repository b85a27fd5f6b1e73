"""Damaged files in a run directory: the error says what to do, or the run continues from an intact file."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tests.conftest import look_at
from tests.test_training import result

from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.report.__main__ import report
from gridlstm.sample import write_samples
from gridlstm.training.checkpoint import load_content
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]
NO_CONFIGURATION = [b"", b"- a\n- list\n", b"\x89PNG\r\n\x1a\n\x00\xff", b"task: 3\nmodel: {}\n"]


@pytest.fixture(scope="module")
def trained(job_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small language model; return its run directory. Tests restore the files that they damage."""
    root = tmp_path_factory.mktemp("trained")
    run_job(job_in(root, task="text"))
    return root / "run"


@pytest.fixture
def damage(trained: Path) -> Any:
    """Return a function that overwrites a file of the run; restore the files after the test."""
    kept: dict[Path, bytes] = {}

    def write(name: str, content: bytes) -> None:
        kept[trained / name] = (trained / name).read_bytes()
        (trained / name).write_bytes(content)

    yield write
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.parametrize("content", NO_CONFIGURATION)
def test_a_damaged_configuration_is_named(content: bytes, damage: Any, trained: Path, job_in: Any) -> None:
    damage("config_source.yaml", content)
    best = trained / "checkpoints" / "best.ckpt"
    commands: list[Callable[[], Any]] = [
        lambda: evaluate(best, "test", []),
        lambda: write_samples(best, lambda _: None, length=3),
        lambda: look_at({"what": "gates", "ckpt": str(best)}),
        lambda: run_job(job_in(trained.parent, f"init_from={best}", task="text", directory="other")),
    ]
    for command in commands:
        with pytest.raises(UserError, match=r"config_source\.yaml is damaged: .*\. Restore it from a copy\.$"):
            command()
    damage("config.yaml", content)
    with pytest.raises(UserError, match=r"config\.yaml is damaged: .*\. Restore it from a copy\.$"):
        run_job(job_in(trained.parent, "ckpt_path=last", task="text"))
    with pytest.raises(UserError, match=r"config\.yaml is damaged: .* Repair or delete it\.$"):
        report([trained], trained / "report")


@pytest.mark.parametrize("content", [b"[1, 2]", b"3", b"", b"{", b"\xff\xfe"])
def test_a_damaged_result_is_named(content: bytes, damage: Any, trained: Path, job_in: Any) -> None:
    damage("result.json", content)
    with pytest.raises(UserError, match=r"result\.json is damaged: .*\. Delete it to continue without it\.$"):
        run_job(job_in(trained.parent, "ckpt_path=last", task="text"))
    with pytest.raises(UserError, match=r"result\.json is damaged: .*\. Repair or delete it\.$"):
        report([trained], trained / "report")


def test_a_finished_run_needs_its_best_checkpoint(damage: Any, trained: Path, job_in: Any) -> None:
    damage("checkpoints/best.ckpt", b"")
    before = result(trained)
    with pytest.raises(UserError, match=r"best\.ckpt cannot be read: it is not a checkpoint.* stages=\[test\]"):
        run_job(job_in(trained.parent, "ckpt_path=last", task="text"))
    assert result(trained) == before
    run_job(job_in(trained.parent, "ckpt_path=last", "stages=[test]", task="text"))
    assert result(trained)["status"] == "completed"


def flip(path: Path, count: int = 64, seed: int = 1) -> None:
    """Change some bytes of a file."""
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    for place in draw.sample(range(len(content)), count):
        content[place] ^= draw.randrange(1, 256)
    path.write_bytes(content)


def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("task.val_every=2", "stages=[fit]")
    run_job(job("trainer.max_steps=10", *options, directory="whole"))
    run_job(job("trainer.max_steps=6", *options, directory="parts"))
    checkpoints = tmp_path / "parts" / "checkpoints"
    flip(checkpoints / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read: .* Give the previous one, .*previous\.ckpt\.$"):
        evaluate(checkpoints / "last.ckpt", "test", [])
    run_job(job("trainer.max_steps=10", *options, "ckpt_path=last", directory="parts"))
    assert "last.ckpt is damaged" in caplog.text
    assert "continues from the previous one" in caplog.text
    whole, parts = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts["state_dict"][name]) for name, value in whole["state_dict"].items())
    rows = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert torch.load(checkpoints / "previous.ckpt")["global_step"] == 8


def test_damaged_checkpoint_does_not_replace_an_intact_one(job: Job, tmp_path: Path) -> None:
    options = ("task.val_every=2", "stages=[fit]")
    run_job(job("trainer.max_steps=4", *options))
    checkpoints = tmp_path / "run" / "checkpoints"
    flip(checkpoints / "last.ckpt")
    run_job(job("trainer.max_steps=4", *options, "ckpt_path=last"))  # this writes one checkpoint
    flip(checkpoints / "last.ckpt")
    run_job(job("trainer.max_steps=6", *options, "ckpt_path=last"))
    assert result(tmp_path / "run")["steps"] == 6


def test_resume_with_two_damaged_checkpoints_is_refused(job: Job, tmp_path: Path) -> None:
    run_job(job("trainer.max_steps=4", "stages=[fit]"))
    before = result(tmp_path / "run")
    for name in ("last", "previous"):
        flip(tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read: .* Give another\.$"):
        run_job(job("trainer.max_steps=6", "stages=[fit]", "ckpt_path=last"))
    assert result(tmp_path / "run") == before


def test_a_changed_byte_of_a_checkpoint_is_detected_or_has_no_effect(trained: Path, tmp_path: Path) -> None:
    whole = torch.load(trained / "checkpoints" / "best.ckpt")
    load_content(trained / "checkpoints" / "best.ckpt")
    refused = 0
    for seed in range(200):
        copy = Path(shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path))
        flip(copy, 1 + seed % 2, seed)
        try:
            content = load_content(copy)
        except UserError:
            refused += 1
            continue
        assert all(torch.equal(value, content["state_dict"][name]) for name, value in whole["state_dict"].items())
    assert 0 < refused < 200


def test_full_disk_error_names_the_file(job: Job, tmp_path: Path) -> None:
    part = tmp_path / "run" / "checkpoints" / "last.ckpt.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/checkpoints/last\.ckpt'$"):
        run_job(job("stages=[fit]"))
    assert result(tmp_path / "run")["error"].endswith("last.ckpt'")
