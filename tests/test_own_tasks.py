"""Custom tasks and models from outside the package can be trained, resumed, evaluated, sized and listed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from tests.conftest import run_python

from gridlstm import list as listing
from gridlstm.config import compose, with_directories
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.training.build import build
from gridlstm.training.checkpoint import load_content
from gridlstm.training.job import run_job
from gridlstm.training.match import match_size
from gridlstm.training.task_models import check_fit

PROJECT = Path(__file__).parent / "own_project"
TASKS = [("bars", "flat"), ("shifted", "pointwise"), ("sums", "grid2d")]


@pytest.fixture(autouse=True)
def own_project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PROJECT))
    with with_directories([PROJECT / "conf"]):
        yield


def job(task: str, model: str, directory: Path, *overrides: str) -> DictConfig:
    names = [f"run.task={task}", f"run.model={model}", "run.group=own", f"run.dir={directory}"]
    return compose(f"task={task}", f"model={model}", "logger=csv", "hardware=cpu", *names, *overrides)


@pytest.mark.parametrize(("task", "model"), TASKS)
def test_custom_task_is_trained_resumed_and_evaluated(
    task: str, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run_job(job(task, model, tmp_path / "whole"))
    run_job(job(task, model, tmp_path / "parts", "trainer.max_steps=4", "stages=[fit]"))
    run_job(job(task, model, tmp_path / "parts", "ckpt_path=last"))
    whole, parts = (load_content(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == 8
    assert all(torch.equal(x, parts["state_dict"][name]) for name, x in whole["state_dict"].items())
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["status"] == "completed"
    best = tmp_path / "whole" / "checkpoints" / "best.ckpt"
    assert evaluate(best, "test", [], trust=["own"]) == pytest.approx(result["test"], rel=1e-6)
    assert {"bars": "1x4x4 pixels", "shifted": "3 + 3 symbols", "sums": "4 numbers"}[task] in caplog.text
    assert {"bars": "4 classes", "shifted": "6 symbols", "sums": "1 number,"}[task] in caplog.text


@pytest.mark.parametrize(("task", "model"), TASKS)
def test_custom_model_matched_to_itself_keeps_its_size(task: str, model: str, tmp_path: Path) -> None:
    for how in ("parameters_to", "flops_to"):
        cfg = job(task, model, tmp_path, f"match.{how}={model}")
        match_size(cfg)
        assert cfg.model.hidden_size == 8


def test_the_list_shows_which_models_fit_which_task() -> None:
    head, *rows = (line.split() for line in listing.matrix().splitlines())
    columns = {task: 1 + head.index(task) for task, _ in TASKS}
    found = {row[0]: {task: row[column] for task, column in columns.items()} for row in rows}
    assert found["flat"] == {"bars": "172", "shifted": "-", "sums": "-"}
    assert found["pointwise"] == {"bars": "-", "shifted": "142", "sums": "-"}
    assert found["grid2d"]["sums"].replace(",", "").isdigit()
    assert found["grid2d"]["bars"] == "-"
    last = {row[0]: row[-2:] for row in rows}
    assert last["flat"] == [f"{4 * 16 * 8 + 6 * 8 * 4:,}", "bars"], "its only task is the user's own"


@pytest.fixture
def _unloadable(tmp_path: Path) -> Iterator[None]:
    """Compose also from models that cannot be loaded: one of a missing module, and one without a class."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gone.yaml").write_text("_target_: no_such_module.Gone\n")
    (tmp_path / "model" / "nameless.yaml").write_text("hidden_size: 8\n")
    with with_directories([PROJECT / "conf", tmp_path]):
        yield


@pytest.mark.usefixtures("_unloadable")
def test_a_model_that_cannot_be_loaded_is_listed_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shown = {"model": ["gone", "grid2d", "nameless"], "task": [*listing.COUNTED]}
    monkeypatch.setattr(listing, "choices", shown.__getitem__)
    head, *lines = (line.split() for line in listing.matrix().splitlines())
    rows = {name: cells for name, *cells in lines}
    assert rows["gone"] == rows["nameless"] == ["-"] * len(head)
    assert rows["grid2d"][0].replace(",", "").isdigit()
    gone, nameless = capsys.readouterr().err.splitlines()
    assert gone.startswith("model=gone cannot be loaded: ")
    assert "no_such_module" in gone
    assert nameless == "model=nameless cannot be loaded: its file names no class"
    assert not caplog.records, "Hydra must not log the reason again"


@pytest.mark.usefixtures("_unloadable")
def test_a_model_without_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model=nameless: .* its file names no class$"):
        check_fit(job("sums", "nameless", tmp_path))


def test_a_damaged_file_ends_the_list_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "aaa.yaml").write_text("data: {size: 3\n")
    done = run_python("-m", "gridlstm.list", "--config-dir", str(tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the configuration cannot be read: ")
    assert "aaa.yaml" in line


def test_the_image_classifier_of_the_docs_equals_the_tested_one() -> None:
    page = (PROJECT.parents[1] / "docs" / "extending.md").read_text()
    block = page.split("The classes of an image classifier:", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    assert block in (PROJECT / "own.py").read_text()
    blocks = page.split("`my_conf/model/flat.yaml`:", 1)[1].split("```yaml\n")[1:3]
    texts = [(PROJECT / "conf" / name).read_text() for name in ("model/flat.yaml", "task/bars.yaml")]
    assert [block.split("```", 1)[0].replace("my_models.", "own.") for block in blocks] == texts


def test_custom_task_sets_its_guessing_loss(tmp_path: Path) -> None:
    run = build(job("sums", "grid2d", tmp_path))
    assert run.task.guessing_loss == 0
