"""The record that loggers keep."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
from omegaconf import DictConfig
from tests.wandb_records import read_back

from gridlstm.errors import UserError
from gridlstm.runtime.csv_logger import CSVLogger
from gridlstm.runtime.job import run_job
from gridlstm.runtime.wandb_logger import make_logger

OPTIONS = {"project": "p", "entity": None, "name": "n", "group": "g", "tags": []}


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without any W&B account."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rows_of_one_step_are_one_row(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"a": 1.5}, step=1)
    logger.log_metrics({"b": 2.5}, step=1)
    logger.log_metrics({"b": 3.5, "c": 1}, step=2)
    logger.save()
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "1.5", "b": "2.5", "c": ""},
        {"step": "2", "a": "", "b": "3.5", "c": "1"},
    ]


def test_a_resumed_log_keeps_its_past_and_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = CSVLogger(str(path))
    for step in (1, 2, 3):
        first.log_metrics({"a": step}, step=step)
    first.finalize("failed")
    second = CSVLogger(str(path))
    second.log_metrics({"a": 20, "b": 0}, step=2)
    second.finalize("success")
    assert rows(path) == [{"step": "1", "a": "1", "b": ""}, {"step": "2", "a": "20", "b": "0"}]


def test_offline_unless_logged_in(nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(mode: str = "auto") -> bool:
        logger = make_logger(**OPTIONS, dir=str(tmp_path), mode=mode)  # type: ignore[arg-type]
        return logger._wandb_init["mode"] == "offline"

    assert offline()
    with pytest.raises(UserError, match="wandb login"):
        offline("online")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + 40 * "a" + "\n")
    assert not offline()
    assert offline("offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline()
    with pytest.raises(UserError, match="auto, online or offline"):
        offline("sometimes")
    (tmp_path / "netrc").write_text("nonsense here")
    with pytest.raises(UserError, match="cannot read the API key"):
        offline()


def test_one_offline_run_with_its_name_config_and_metrics(
    nobody: None, job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    run_job(job("logger=wandb", "stages=[fit]", directory="a"))
    assert wandb.run is None, "left open, it would swallow the next job"
    run_job(job("logger=wandb", "stages=[fit]", directory="b"))
    first, second = (next((tmp_path / name).glob("wandb/offline-run-*/run-*.wandb")) for name in "ab")
    assert first.name != second.name, "each run directory is a run of its own"
    found = read_back(first)
    run = found["run"][0].run
    assert (run.display_name, run.run_group, run.project) == ("memorization-grid2d-s1", "test", "gridlstm")
    assert "hidden_size" in str(found) + str(run.config)
    steps = [
        {item.key or "/".join(item.nested_key): item.value_json for item in r.history.item} for r in found["history"]
    ]
    assert {"train/loss", "val/accuracy", "samples"} <= {key for step in steps for key in step}
    assert found["exit"][0].exit.exit_code == 0


def test_a_failed_run_is_a_failed_run(nobody: None, job: Callable[..., DictConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run_job(job("logger=wandb", "optimizer.lr=1e30"))
    found = read_back(next((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")))
    assert found["exit"][0].exit.exit_code == 1


def test_tensorboard_is_an_option(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_job(job("logger=tensorboard", "callbacks.learning_curve=null", "stages=[fit]"))
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))


def test_without_the_csv_logger_the_curve_is_missed_aloud(
    job: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    run_job(job("logger=tensorboard", "stages=[fit]"))
    assert "Add the csv logger" in caplog.text
