"""A run directory keeps the options of its run, so ckpt_path=last hydra.run.dir=… is enough to resume it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError
from tests.conftest import ROOT, TOY, TOY_TASKS, run_python
from tests.image_files import write_digits

from gridlstm.config import quoted
from gridlstm.evaluate import evaluate
from gridlstm.training.arguments import with_kept
from gridlstm.training.job import run_job

TRAIN = str(ROOT / "train.py")
KEPT = [
    *("--config-dir=/mine", "model=grid2d", "seed=2", "+task.extra=1", "~callbacks.progress", "ckpt_path=/other.ckpt"),
    *("task.path='/a b/c.txt'", "task.max_steps=${gridlstm.steps:80}"),
]
READ = [word.replace("task.max_steps", "trainer.max_steps") for word in KEPT]
"""``KEPT`` after reading, which replaces task.max_steps of an older run by trainer.max_steps."""


@pytest.fixture
def directory(job: Callable[..., DictConfig], tmp_path: Path) -> Path:
    """Train a run in a directory whose path needs quotes, and replace its kept options by ``KEPT``."""
    run_job(job("stages=[fit]", directory="its run"))
    file = tmp_path / "its run" / "config_source.yaml"
    source = OmegaConf.load(file)
    source.run.arguments = KEPT
    OmegaConf.save(source, file)
    return file.parent


@pytest.mark.parametrize(
    ("typed", "gone"),
    [
        ([], ["ckpt_path=/other.ckpt"]),
        (["seed=3"], ["ckpt_path=/other.ckpt", "seed=2"]),
        (["trainer.max_steps=9"], ["ckpt_path=/other.ckpt", "trainer.max_steps=${gridlstm.steps:80}"]),
        (["+task.extra=2", "~callbacks.progress"], ["ckpt_path=/other.ckpt", "+task.extra=1", "~callbacks.progress"]),
        (["task.extra=2"], ["ckpt_path=/other.ckpt"]),
        (["--config-dir", "/yours"], ["ckpt_path=/other.ckpt", "--config-dir=/mine"]),
    ],
)
def test_typed_options_override_kept_options(typed: list[str], gone: list[str], directory: Path) -> None:
    given = [*typed, "ckpt_path=last", f"hydra.run.dir='{directory}'"]
    assert with_kept(given) == [*(word for word in READ if word not in gone), *given]
    own = [*typed, f"ckpt_path='{directory}/checkpoints/last.ckpt'", f"hydra.run.dir='{directory}'"]
    assert with_kept(own) == [*(word for word in READ if word not in gone), *own]


def test_command_lines_that_resume_no_directory_are_unchanged(directory: Path, tmp_path: Path) -> None:
    for words in (
        ["seed=1"],
        ["ckpt_path=last"],
        [f"hydra.run.dir='{directory}'"],
        ["ckpt_path=last", f"hydra.run.dir={tmp_path}/new"],
        [f"ckpt_path='{directory}/checkpoints/last.ckpt'", f"hydra.run.dir={tmp_path}/new"],
        ["-m", "ckpt_path=last", f"hydra.run.dir='{directory}'"],
    ):
        assert with_kept(words) == words


def test_a_run_that_ended_before_its_first_checkpoint_starts_again_with_its_words(directory: Path) -> None:
    for checkpoint in (directory / "checkpoints").iterdir():
        checkpoint.unlink()
    words = ["ckpt_path=last", f"hydra.run.dir='{directory}'"]
    assert with_kept(words) == [*(word for word in READ if word != "ckpt_path=/other.ckpt"), *words]


def test_data_of_another_machine_are_looked_for_where_they_are_here(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, words = directory / "config_source.yaml", ["ckpt_path=last", f"hydra.run.dir='{directory}'"]
    source = OmegaConf.load(file)
    for there, here, kept in ((tmp_path, "here", True), ("/not/here", "here", False), ("/not/here", "", True)):
        source.run.arguments = [f"data_dir='{there}'"]
        OmegaConf.save(source, file)
        monkeypatch.setenv("GRIDLSTM_DATA", here)
        assert with_kept(words) == [f"data_dir='{there}'"] * kept + words


def result(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return found


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(directory / "checkpoints" / "last.ckpt")["state_dict"]
    return found


def test_a_run_is_resumed_by_its_directory_alone(tmp_path: Path) -> None:
    """The path of the text was relative to another working directory."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "text.txt").write_text("some text of which little is learned, " * 200)
    words = [TRAIN, "task=text", *TOY, *TOY_TASKS["text"], "task.path=text.txt", "optimizer=rmsprop", "stages=[fit]"]
    for name, steps in (("whole", 6), ("parts", 4)):
        run_python(*words, f"trainer.max_steps={steps}", f"hydra.run.dir={name}", cwd=tmp_path / "there", check=True)
    parts = tmp_path / "there" / "parts"
    resume = [TRAIN, "ckpt_path=last", f"hydra.run.dir={parts}"]
    run_python(*resume, "trainer.max_steps=6", cwd=tmp_path, check=True)
    assert result(parts)["steps"] == 6
    assert "optimizer=rmsprop" in result(parts)["command"]
    whole = weights(tmp_path / "there" / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(parts).items())
    run_python(*resume, "trainer.max_steps=8", cwd=tmp_path, check=True)
    assert result(parts)["steps"] == 8, "a resumed run keeps its options too"
    refused = run_python(*resume, "model.hidden_size=9", "optimizer=sgd", "seed=1", cwd=tmp_path)
    assert refused.returncode == 1
    named = [line.split("=")[0].strip() for line in refused.stderr.splitlines() if ", in the earlier run " in line]
    assert {name for name in named if not name.startswith("optimizer.")} == {"model.hidden_size"}
    assert "optimizer._target_" in named
    assert result(parts)["status"] == "completed"


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("there/checkpoints/best.ckpt", ["ckpt_path=last", "trainer.max_steps=6"]),
        ("there/checkpoints/best.ckpt", ["ckpt_path={run}/checkpoints/previous.ckpt", "trainer.max_steps=6"]),
        ("~/there/checkpoints/best.ckpt", ["ckpt_path=last", "stages=[test]"]),
    ],
)
def test_a_run_is_resumed_without_the_weights_that_it_started_from(
    typed: str, options: list[str], job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept words have their absolute path, and config.yaml has the text as it was typed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run_job(job("stages=[fit]", directory="there"))
    monkeypatch.chdir(tmp_path)
    run_job(job(f"init_from={quoted(typed)}", "stages=[fit]"))
    kept, stored = (OmegaConf.load(tmp_path / "run" / f"{name}.yaml").init_from for name in ("config_source", "config"))
    assert (kept, stored) == (str(tmp_path / "there" / "checkpoints" / "best.ckpt"), typed)
    shutil.rmtree(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "run")
    run_job(job(f"init_from={quoted(kept)}", *(option.format(run=tmp_path / "run") for option in options)))
    assert result(tmp_path / "run")["legs"] == 2


def test_a_run_is_resumed_with_the_data_that_it_had(tmp_path: Path) -> None:
    """The default of data_dir depends on the working directory."""
    write_digits(tmp_path / "there" / "data")
    small = ["task=mnist", "model=mlp", "model.hidden_size=4", "task.data.num_val=10", "stages=[fit]", "logger=csv"]
    away = {"environment": {"GRIDLSTM_DATA": "data"}, "check": True}
    run_python(TRAIN, *small, "trainer.max_steps=2", "hydra.run.dir=run", cwd=tmp_path / "there", **away)
    directory = tmp_path / "there" / "run"
    run_python(TRAIN, "ckpt_path=last", f"hydra.run.dir={directory}", "trainer.max_steps=3", cwd=tmp_path, **away)
    assert result(directory)["steps"] == 3


def test_files_of_other_names_replace_the_abbreviations_of_parallel_files(
    job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu")
    monkeypatch.chdir(tmp_path)
    for name in ("a.zh", "b.en"):
        Path(name).write_text("".join(f"line {n} of {name}\n" for n in range(40)))
    small = ["task.data.source.num_val=8", *(f"task.data.{side}_level.size=40" for side in ("source", "target"))]
    files = ["task.data.source.train=[a.zh,b.en]", "task.data.source.test=[a.zh,b.en]"]
    run_job(job(*files, *small, "stages=[fit]", task="parallel", model="attention_lstm"))
    assert "test/loss" in evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [])
    with pytest.raises(InterpolationToMissingValueError, match=r"task\.test_pairs"):
        run_job(job(files[0], *small, "stages=[fit]", task="parallel", model="attention_lstm", directory="other"))


def test_paths_of_parallel_files_suit_another_working_directory(
    job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu")
    (tmp_path / "there").mkdir()
    for name in ("all.de", "all.en", "test.de", "test.en"):
        (tmp_path / "there" / name).write_text("".join(f"line {n} of {name}\n" for n in range(40)))
    small = ["task.data.source.num_val=8", *(f"task.data.{side}_level.size=40" for side in ("source", "target"))]
    files = ["task.pairs=all", "task.test_pairs=all", "task.data.source.test=[test.de,test.en]"]
    cfg = job(*files, *small, "stages=[fit]", task="parallel", model="attention_lstm")
    with monkeypatch.context() as there:
        there.chdir(tmp_path / "there")
        run_job(cfg)
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert "test/loss" in evaluate(checkpoint, "test", [])
    source = OmegaConf.load(tmp_path / "run" / "config_source.yaml")
    assert OmegaConf.to_container(source.task.data.source.train) == [
        "${task.pairs}.${task.source_language}",
        "${task.pairs}.${task.target_language}",
    ]
    # Files with other names are those of the run; a list is read as one.
    (tmp_path / "there").rename(tmp_path / "here")
    here = tmp_path / "here"
    moved = [f"task.pairs={here}/all", f"task.data.source.test=[{here}/test.de,{here}/test.en]"]
    assert "test/loss" in evaluate(checkpoint, "test", moved)
    run_job(job(f"task.pairs={here}/all", f"task.test_pairs={here}/test", *small, "stages=[fit]", "ckpt_path=last",
                "trainer.max_steps=6", task="parallel", model="attention_lstm"))  # fmt: skip


def test_a_job_of_a_sweep_is_resumed_by_its_directory_alone(tmp_path: Path) -> None:
    words = [TRAIN, "-m", *TOY, *TOY_TASKS["memorization"], "stages=[fit]", "hydra.sweep.dir=sweep"]
    run_python(*words, "seed=1,2", "hydra.sweep.subdir=job-${seed}", cwd=tmp_path, check=True)
    job = tmp_path / "sweep" / "job-2"
    run_python(TRAIN, "ckpt_path=last", "hydra.run.dir=sweep/job-2", "trainer.max_steps=6", cwd=tmp_path, check=True)
    assert (result(job)["steps"], result(job)["seed"]) == (6, 2)
    assert OmegaConf.load(job / "config.yaml").run.name == "job-2"
