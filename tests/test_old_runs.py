"""Run directories and checkpoints of commit ca1e058 still work and give the same numbers as at that commit."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tests.conftest import compose

from gridlstm.data.old_runs import todays_name
from gridlstm.data.penn_treebank import FILES
from gridlstm.evaluate import evaluate
from gridlstm.options import leaves
from gridlstm.report.__main__ import report
from gridlstm.sample import write_samples
from gridlstm.training.job import run_job
from gridlstm.training.stored import read_config

FIXTURES = Path(__file__).parent / "fixtures"

ROUNDING = 1e-5
"""Relative tolerance of means of float32 losses: another machine may sum products in another order. After 30 more
steps of training, two sweeps differed by 2e-8."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Write the text on which all old runs were trained."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} squared is {n * n}, and {n} doubled is {2 * n}.\n" for n in range(480)))
    return path


def old(name: str, tmp_path: Path) -> Path:
    """Copy an old run directory; return the copy."""
    return Path(shutil.copytree(FIXTURES / f"old_run_{name}", tmp_path / f"old_run_{name}"))


def in_parts(text: Path, names: tuple[str, ...]) -> Path:
    """Write the text in three files; return their directory."""
    lines = text.read_text().splitlines(keepends=True)
    directory = text.with_name("parts")
    directory.mkdir()
    for name, part in zip(names, (lines[:400], lines[400:440], lines[440:]), strict=True):
        (directory / name).write_text("".join(part))
    return directory


@pytest.mark.parametrize("task", ["text", "memorization", "enwik8", "penn_treebank", "hub"])
def test_every_option_of_an_old_task_still_exists(task: str) -> None:
    named = {"text": ["task.path=x"], "penn_treebank": ["task.path=x"], "hub": ["task.name=x"]}.get(task, [])
    today = dict(leaves(OmegaConf.to_container(compose(f"task={task}", *named).task)))
    for file in ("config.yaml", "config_source.yaml"):
        old = read_config(FIXTURES / f"old_run_{task}" / file)
        assert dict(leaves(OmegaConf.to_container(old.task))).keys() <= today.keys()
        assert old.task.data._target_ == today["data._target_"]
        assert OmegaConf.select(old, "task.data.source._target_") == today.get("data.source._target_")


def test_targets_of_an_old_run_are_replaced_by_their_present_paths() -> None:
    today = leaves(OmegaConf.to_container(compose("task=memorization")))
    targets = {key: value for key, value in today if key.endswith("._target_")}
    before = leaves(OmegaConf.to_container(read_config(FIXTURES / "old_run_memorization" / "config.yaml")))
    assert {key: value for key, value in before if key.endswith("._target_")}.items() <= targets.items()


def test_text_override_reaches_the_source_of_an_old_run() -> None:
    for task, override in (("text", "task.data.path=new"), ("hub", "task.data.name=new"), ("hub", "task.name=new")):
        config = read_config(FIXTURES / f"old_run_{task}" / "config_source.yaml")
        config.merge_with_dotlist([todays_name(config, override)])
        assert "new" in (config.task.data.source.get("path"), config.task.data.source.get("name"))


@pytest.mark.parametrize(
    ("split", "loss", "bpc", "perplexity"),
    [
        ("test", 1.0764267969101138, 1.5529556017822126, 2.9341763891354327),
        ("val", 1.002698072003961, 1.4465875359890394, 2.7256258514555847),
        ("all", 0.9453186915173347, 1.3638065883117025, 2.573633443054621),
    ],
)
def test_an_old_text_run_is_evaluated(
    text: Path, tmp_path: Path, split: str, loss: float, bpc: float, perplexity: float
) -> None:
    checkpoint = old("text", tmp_path) / "checkpoints" / "best.ckpt"
    found = evaluate(checkpoint, split, [f"task.path={text}", f"task.data.cache_dir={tmp_path}"])
    expected = {f"{split}/loss": loss, f"{split}/bpc": bpc, f"{split}/perplexity": perplexity}
    assert found == pytest.approx(expected, rel=ROUNDING)


def test_an_old_memorization_run_is_evaluated(tmp_path: Path) -> None:
    found = evaluate(old("memorization", tmp_path) / "checkpoints" / "best.ckpt", "test", [])
    expected = {"test/loss": 0.033148985854064034, "test/accuracy": 0.99, "test/sequence_accuracy": 0.97}
    assert found == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize("name", ["enwik8", "penn_treebank", "hub"])
def test_old_runs_on_other_texts_are_evaluated(
    text: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "hub":
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub_cache")
        named = f"task.data.name={in_parts(text, ('train.txt', 'validation.txt', 'test.txt'))}"
    elif name == "penn_treebank":
        named = f"task.path={in_parts(text, FILES)}"
    else:
        named = f"task.path={text}"
    loss = {"enwik8": 3.3004691484924416, "penn_treebank": 3.2450517038514857, "hub": 3.2450517038514857}[name]
    checkpoint = old(name, tmp_path) / "checkpoints" / "best.ckpt"
    found = evaluate(checkpoint, "test", [named, f"task.data.cache_dir={tmp_path / 'cache'}"])
    assert found["test/loss"] == pytest.approx(loss, rel=ROUNDING)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("text", "12 squared is 11939quared is doubled is 12, squand 139, and 3368 doubl\n"),
        ("enwik8", "12 squared\n53,5593dq72iuir.3 d759bi48e\ni,2,liuu.o8513nno i82isl,i1 lbn\n"),
    ],
)
def test_old_run_samples_the_same_text(tmp_path: Path, name: str, written: str) -> None:
    pieces: list[str] = []
    write_samples(old(name, tmp_path) / "checkpoints" / "best.ckpt", pieces.append, prime="12 squared", length=60)
    assert "".join(pieces) == written


def test_an_old_run_is_resumed(text: Path, tmp_path: Path) -> None:
    directory = old("text", tmp_path)
    names = ["run.task=text", "run.model=grid2d", "run.group=adhoc", f"run.dir={directory}", f"task.path={text}"]
    sizes = ["model.hidden_size=8", "model.num_layers=4", "task.data.window=10", "task.data.stream_length=200"]
    training = ["task.data.batch_size=8", "optimizer.lr=0.01", "task.val_every=30", "trainer.log_every_n_steps=10"]
    here = ["logger=csv", "hardware=cpu", f"task.data.cache_dir={tmp_path}", "ckpt_path=last", "trainer.max_steps=150"]
    run_job(compose("task=text", *names, *sizes, *training, *here))
    result = json.loads((directory / "result.json").read_text())
    assert (result["steps"], result["samples"]) == (150, 1200)
    assert result["test"]["test/bpc"] == pytest.approx(1.4442444010421494, rel=ROUNDING)


def test_old_runs_are_reported(tmp_path: Path) -> None:
    for name in ("text", "memorization"):
        old(name, tmp_path / "runs")
    line, *lost = report([tmp_path / "runs"], tmp_path)
    assert (line, lost) == ("2 runs: 2 completed.", [])
    tables = (tmp_path / "report.csv").read_text().split("\n\n")
    found = {row["model"]: row for table in tables for row in csv.DictReader(table.splitlines())}
    assert found["grid2d"]["test/bpc"] == "1.5529556029914657"
    assert found["grid2d"]["best val/bpc"] == "1.4465875427921664"
    assert found["grid2d_untied"]["test/accuracy"] == "0.99"
    assert [(row["parameters"], row["samples"]) for row in found.values()] == [("2345", "6000"), ("1882", "960")]


def test_report_groups_old_and_new_seeds_in_one_row(tmp_path: Path) -> None:
    old("memorization", tmp_path / "runs")
    sizes = ["model=grid2d_untied", "model.hidden_size=8", "model.num_layers=2", "optimizer.lr=0.01", "seed=2"]
    steps = ["trainer.val_check_interval=100", "trainer.max_steps=400"]
    data = ["task.alphabet=8", "task.length=3", "task.data.num_val=50", "task.data.num_test=100", "hardware=cpu"]
    named = ["run.task=memorization", "run.model=grid2d_untied", "run.group=adhoc", "run.name=today", "logger=csv"]
    run_job(compose("task=memorization", *sizes, *steps, *data, *named, f"run.dir={tmp_path / 'runs' / 'today'}"))
    report([tmp_path / "runs"], tmp_path)
    (row,) = csv.DictReader((tmp_path / "report.csv").read_text().split("\n\n")[0].splitlines())
    assert (row["seeds"], row["which seeds"]) == ("2", "1, 2")
