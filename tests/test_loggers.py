"""The rows of metrics.csv, and the runs that W&B and TensorBoard record."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import wandb
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from tests.conftest import ROOT, free_ports, run_python
from tests.wandb_records import read_back
from tests.wandb_server import server
from wandb.proto.wandb_internal_pb2 import Record

from gridlstm.errors import UserError
from gridlstm.training.job import run_job
from gridlstm.training.loggers import wandb_logger
from gridlstm.training.loggers.csv_logger import CSVLogger
from gridlstm.training.loggers.wandb_account import logged_in
from gridlstm.training.loggers.wandb_logger import make_logger

OPTIONS = {"project": "p", "entity": None, "name": "n", "group": "g", "tags": []}


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every W&B account from the environment."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings of nobody"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_metrics_of_one_step_share_a_row(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"a": 1.5}, step=1)
    logger.log_metrics({"b": 2.5}, step=1)
    logger.log_metrics({"b": 3.5, "c": 1}, step=2)
    logger.save()
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "1.5", "b": "2.5", "c": ""},
        {"step": "2", "a": "", "b": "3.5", "c": "1"},
    ]


def test_resumed_log_drops_rows_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = CSVLogger(str(path))
    for step in (1, 2, 3):
        first.log_metrics({"a": step}, step=step)
    first.finalize("failed")
    second = CSVLogger(str(path))
    second.log_metrics({"a": 20, "b": 0}, step=2)
    second.finalize("success")
    assert rows(path) == [{"step": "1", "a": "1", "b": ""}, {"step": "2", "a": "20", "b": "0"}]


@pytest.mark.parametrize("table", ["a,b\n1,2\n", "step,a\n2.0,1\n", "step,a\n" + "0" * 200_000])
def test_a_damaged_log_is_refused_in_one_sentence(tmp_path: Path, table: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(table)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged, and the run adds to it: .*\. Restore it, or"):
        CSVLogger(str(path))
    assert path.read_text() == table


def test_offline_unless_logged_in(nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(mode: str = "auto") -> bool:
        logger = make_logger(**OPTIONS, dir=str(tmp_path), mode=mode)  # type: ignore[arg-type]
        return logger._wandb_init["mode"] == "offline"

    monkeypatch.setattr(wandb_logger, "unreachable", lambda: None)  # as if the network worked
    assert offline()
    with pytest.raises(UserError, match="wandb login"):
        offline("online")
    # wandb stores the key under the host of its server; earlier versions used api.wandb.ai.
    for host in (urlsplit(wandb.Settings().base_url).netloc, "api.wandb.ai"):
        (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {40 * 'a'}\n")
        assert not offline()
    assert offline("offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline()
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    with pytest.raises(UserError, match="WANDB_MODE must be online, offline or disabled, got 'dryrun'"):
        offline()
    (tmp_path / "netrc").write_text("nonsense here")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline(), "the file of keys is not needed"
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(UserError, match=r"logger\.wandb\.mode must be auto, online, offline or disabled"):
        offline("sometimes")
    with pytest.raises(UserError, match="cannot read the API key"):
        offline()


def test_the_server_of_a_login_is_known(nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb login --host=…` stores the address beside the key."""
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    (tmp_path / "netrc").write_text(f"machine wandb.example\n  login user\n  password {40 * 'a'}\n")
    assert not logged_in()
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
    assert logged_in()
    (tmp_path / "settings").write_text("not settings")
    assert not logged_in()


def test_nobody_is_logged_in_without_a_home_directory(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", "~nobody-here/netrc")
    assert not logged_in()


def test_disabled_writes_nothing(nobody: None, job: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = job("logger=wandb", "trainer.max_steps=2")
    run_job(config)
    assert [path.name for path in Path(config.run.dir, "wandb").iterdir()] == ["run-id"]


def test_unreadable_netrc_means_not_logged_in(nobody: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path))
    assert not logged_in()


def test_unwritable_home_does_not_stop_wandb_runs(
    nobody: None, job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/dev/null/nobody")
    run_job(job("logger=wandb"))
    run_job(job("logger=wandb", "trainer.max_steps=6", "ckpt_path=last"))
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written["status"], written["steps"]) == ("completed", 6)
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/table/result_*.json"))
    assert len(files) == 2
    assert "WANDB_DATA_DIR" not in os.environ


def end_service() -> None:
    """Kill the W&B process that this process has started."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, rest = (process / "stat").read_text().rsplit(")", 1)
        except OSError:  # the process has ended meanwhile
            continue
        if name.endswith("(wandb-core") and int(rest.split()[1]) == os.getpid():
            os.kill(int(process.name), signal.SIGKILL)


class EndService(Callback):
    """Kills W&B after the first step."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 1:
            end_service()


def test_an_error_of_wandb_does_not_end_a_run(
    nobody: None, job: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next run in the same process is logged again."""
    score = run_job(job("logger=[csv,wandb]", "+callbacks.end._target_=tests.test_loggers.EndService"))
    assert caplog.text.count("W&B failed, and nothing more of this run is logged there: Connection") == 1
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (written["status"], written["score"]) == ("completed", score)
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["2", "4"]
    run_job(job("logger=wandb", directory="next"))
    assert read_back(run_file(tmp_path / "next"))["exit"][0].exit.exit_code == 0


def test_a_run_is_recorded_before_its_loggers_end(
    job: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loggers may wait hours for a server."""

    def wait(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CSVLogger, "finish", wait, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run_job(job())
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["status"] == "completed"
    assert set(written) >= {"test", "score"}


def run_file(directory: Path) -> Path:
    (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    return file


def items(records: list[Record], kind: str) -> list[dict[str, Any]]:
    """Return the content of each history or summary record by key."""
    rows = [getattr(r, kind) for r in records]
    lists = [row.item if kind == "history" else row.update for row in rows]
    return [{i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in row} for row in lists]


def test_one_offline_run_with_its_name_config_metrics_and_result(
    nobody: None, job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    configs = {name: job("logger=[csv,wandb]", directory=name, picture=name == "a") for name in "ab"}
    for cfg in configs.values():
        run_job(cfg)
    assert wandb.run is None, "an open run would record the metrics of the next job"
    found, second = (read_back(run_file(tmp_path / name)) for name in "ab")
    run = found["run"][0].run
    assert run.run_id != second["run"][0].run.run_id, "each run directory must have its own W&B run"
    assert (run.display_name, run.run_group, run.project) == ("memorization-grid2d-s1", "test", "gridlstm")
    recorded: dict[str, Any] = {}
    for record in found.get("config", []):
        recorded |= {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.config.update}
    assert recorded["model"] == OmegaConf.to_container(configs["a"].model, resolve=True)
    steps = items(found["history"], "history")
    logged: dict[str, Any] = {key: value for step in steps for key, value in step.items()}
    assert {"train/loss", "val/accuracy", "test/accuracy", "samples"} <= set(logged)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    summary: dict[str, Any] = {key: v for row in items(found["summary"], "summary") for key, v in row.items()}
    same = ("status", "score", "best", "test", "parameters", "samples", "commit", "versions", "command")
    assert {name: summary[name] for name in same} == {name: result[name] for name in same}
    files = tmp_path / "a" / "wandb" / "latest-run" / "files"
    picture = files / logged["learning_curve.path"]
    assert picture.read_bytes() == (tmp_path / "a" / "learning_curve.png").read_bytes()
    table = json.loads((files / logged["result.path"]).read_text())
    assert table["columns"] == ["metric", "best", "final", "test"]
    row = next(row for row in table["data"] if row[0] == "val/accuracy")
    assert row == ["val/accuracy", result["score"], result["final"]["val/accuracy"], result["test"]["test/accuracy"]]
    assert found["exit"][0].exit.exit_code == 0


def test_resumed_run_keeps_its_wandb_id_after_moving(
    nobody: None, job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    options = ["logger=wandb"]

    def run_id(directory: str, *more: str) -> str:
        run_job(job(*options, *more, directory=directory))
        (file,) = (tmp_path / directory / "wandb" / "latest-run").glob("run-*.wandb")
        return read_back(file)["run"][0].run.run_id

    first = run_id("run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run_id("moved", "trainer.max_steps=6", "ckpt_path=last") == first
    best = f"ckpt_path={tmp_path}/moved/checkpoints/best.ckpt"
    assert run_id("moved", best, "stages=[test]") == first
    assert run_id("other", best, "stages=[test]") != first, (
        "a run with weights of another directory must have its own W&B run"
    )
    shutil.rmtree(tmp_path / "moved" / "checkpoints")
    assert run_id("moved") != first, "training from the start must have a new W&B run"


WITH_TESTS = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
UNREACHED = """
import logging
from pathlib import Path
from tests.conftest import TOY, TOY_TASKS, compose
from gridlstm.errors import UserError
from gridlstm.training.job import run_job
from gridlstm.training.loggers.wandb_account import logged_in
logging.basicConfig(format="%(message)s")
names = ["run.task=memorization", "run.model=grid2d", "run.group=test", "logger=wandb", "callbacks.learning_curve=null"]
options = [*TOY, *TOY_TASKS["memorization"], *names]
run_job(compose(*options, f"run.dir={Path.cwd()}/run"))
try:
    run_job(compose(*options, f"run.dir={Path.cwd()}/other", "logger.wandb.mode=online"))
except UserError as error:
    print("refused:", error)
"""


def test_a_run_is_logged_offline_if_wandb_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example, only the login node of a cluster may have access to the network."""
    (port,) = free_ports(1)
    account = {"WANDB_API_KEY": 40 * "a", "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    monkeypatch.delenv("WANDB_MODE", raising=False)
    done = run_python("-c", UNREACHED, cwd=tmp_path, environment=account | WITH_TESTS)
    assert done.returncode == 0, done.stderr
    assert "W&B cannot be reached" in done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
    assert (
        "refused: logger.wandb (gridlstm.training.loggers.wandb_logger.make_logger): W&B cannot be reached"
        in done.stdout
    )


TWO_LEGS = """
from pathlib import Path
from tests.conftest import TOY, TOY_TASKS, compose
from gridlstm.training.job import run_job
from gridlstm.training.loggers.wandb_account import logged_in
names = ["run.task=memorization", "run.model=grid2d", "run.group=test", f"run.dir={Path.cwd()}"]
options = [*TOY, *TOY_TASKS["memorization"], *names, "logger=wandb", "stages=[fit]", "callbacks.learning_curve=null"]
run_job(compose(*options))
run_job(compose(*options, "ckpt_path=last", "trainer.max_steps=6"))
"""


def test_online_a_resumed_run_has_the_same_id(tmp_path: Path) -> None:
    with server() as wandb_server:
        account = {
            "WANDB_API_KEY": 40 * "a",
            "WANDB_BASE_URL": wandb_server.url,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_MODE": "online",
        }
        # It needs its own process, because wandb reads the address of its server only once.
        run_python("-c", TWO_LEGS, cwd=tmp_path, check=True, environment=account | WITH_TESTS)
        assert len(wandb_server.of("RunResumeStatus")) == 2, "each part must ask whether the run exists"
        made = wandb_server.of("UpsertBucket")
        assert len({asked["name"] for asked in made}) == 1
        assert [asked["displayName"] for asked in made if asked["displayName"]] == 2 * ["memorization-grid2d-s1"]


def test_restarted_training_drops_rows_of_the_previous_one(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    for every in (2, 5):
        shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
        run_job(job("trainer.max_steps=10", "task.val_every=10", f"trainer.log_every_n_steps={every}", "stages=[fit]"))
    assert [row["step"] for row in rows(tmp_path / "run" / "metrics.csv")] == ["5", "10"]


def test_a_failed_run_is_marked_failed_in_wandb(nobody: None, job: Callable[..., DictConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run_job(job("logger=wandb", "optimizer.lr=1e30"))
    found = read_back(run_file(tmp_path / "run"))
    assert found["exit"][0].exit.exit_code == 1
    assert "preempting" not in found
    ends = [row for row in items(found["summary"], "summary") if "status" in row]
    assert (ends[-1]["status"], ends[-1]["error"][:17]) == ("failed", "the training loss")


class Interrupt(Callback):
    """Raises KeyboardInterrupt, like Ctrl-C, after the first step."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise KeyboardInterrupt


def test_an_interrupted_run_is_marked_preempted_in_wandb(
    nobody: None, job: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        run_job(job("logger=wandb", "+callbacks.interrupt._target_=tests.test_loggers.Interrupt"))
    found = read_back(run_file(tmp_path / "run"))
    assert found["exit"][0].exit.exit_code == 1
    assert len(found["preempting"]) == 1
    assert [row for row in items(found["summary"], "summary") if "status" in row][-1]["status"] == "interrupted"


def test_tensorboard_is_an_option(job: Callable[..., DictConfig], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_job(job("logger=tensorboard", "stages=[fit]"))
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))


def test_uninstalled_logger_is_refused_with_a_reason(
    job: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(UserError, match=r"logger\.tensorboard .*: Neither `tensorboard` nor"):
        run_job(job("logger=tensorboard", "stages=[fit]"))


def test_missing_csv_logger_warns_about_the_learning_curve(
    job: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    run_job(job("logger=tensorboard", "stages=[fit]", picture=True))
    assert "Use the csv logger" in caplog.text
