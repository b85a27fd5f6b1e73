"""Complete runs at toy size, in this process."""

import csv
import json
import logging
import math
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from gridlstm.data.spec import Spec
from gridlstm.data.text import TextData
from gridlstm.engine.matmul import cost_of_products
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.grid import Grid
from gridlstm.metrics import RatioOfSums
from gridlstm.models.base import SequenceModel
from gridlstm.tasks.base import MakeOptimizer
from gridlstm.tasks.sequence import SequenceTask
from gridlstm.tasks.tag_sequence import TagSequence
from gridlstm.tasks.training_share import TrainingShare
from gridlstm.training.atomic_checkpoints import AtomicCheckpointIO
from gridlstm.training.build import build, make_data
from gridlstm.training.callbacks.clock import Clock
from gridlstm.training.checkpoint import data_state, load_config, load_content
from gridlstm.training.job import run_job
from gridlstm.training.validate import check

Job = Callable[..., DictConfig]


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def result(directory: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((directory / "result.json").read_text())
    return content


PAIRS = [(task, model) for task in ("memorization", "addition", "text") for model in ("grid2d", "stacked_lstm")]


@pytest.mark.parametrize(("task", "model"), [*PAIRS, ("parity", "grid1d")])
def test_every_model_runs_every_task_and_leaves_its_record(job: Job, tmp_path: Path, task: str, model: str) -> None:
    config = job(task=task, model=model, picture=True)
    score = run_job(config)
    directory = tmp_path / "run"
    written = result(directory)
    assert written["status"] == "completed"
    assert written["score"] == score == written["best"][config.task.monitor]  # type: ignore[index]
    assert (written["task"], written["model"], written["seed"], written["steps"]) == (task, model, 1, 4)
    assert written["samples"] == 4 * config.task.data.batch_size
    parameters = sum(p.numel() for p in build(config).task.parameters())
    assert written["parameters"] == parameters
    assert {"command", "commit", "device", "versions", "seconds", "final", "test", "state_size"} <= set(written)
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert [row["step"] for row in rows(directory)] == ["2", "4"]
    assert all(math.isfinite(float(row["train/loss"])) and float(row["val/loss"]) for row in rows(directory))
    assert not list(directory.glob("**/*partial*"))
    with Image.open(directory / "learning_curve.png") as picture:
        assert picture.width > 500
        assert picture.getextrema() != ((255, 255),) * 4, "the picture is blank"


@pytest.mark.parametrize(
    ("task", "precision"),
    [("memorization", "32-true"), ("text", "32-true"), ("finite", "32-true"), ("memorization", "64-true")],
)
def test_a_resumed_run_equals_an_uninterrupted_one(job: Job, tmp_path: Path, task: str, precision: str) -> None:
    """The weights, the carried recurrent state and the rows of the log are equal to the bit."""
    options = ["stages=[fit]", f"trainer.precision={precision}"]
    if task == "finite":  # four batches of 15 end in the middle of the fourth epoch of 17 samples
        options.append("task.data._target_=tests.finite.FiniteMemorization")
        task = "memorization"
    run_job(job("trainer.max_steps=8", *options, task=task, directory="whole"))
    run_job(job("trainer.max_steps=4", *options, task=task, directory="parts"))
    run_job(job("trainer.max_steps=8", *options, "ckpt_path=last", task=task, directory="parts"))
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] == 8
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    for a, b in zip(whole.get("carried_state", []), parts.get("carried_state", []), strict=True):
        assert torch.equal(a, b)
    assert ("carried_state" in whole) == (task == "text")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts"), "the rows of the first half must be kept"


def test_last_without_a_checkpoint_starts_from_scratch(job: Job, tmp_path: Path) -> None:
    run_job(job("ckpt_path=last"))
    assert result(tmp_path / "run")["steps"] == 4


def test_final_step_is_validated_off_the_interval(job: Job, tmp_path: Path) -> None:
    run_job(job("trainer.max_steps=3"))
    assert [row["step"] for row in rows(tmp_path / "run") if row["val/loss"]] == ["2", "3"]


def test_a_time_limit_ends_a_run_with_a_validation(job: Job, tmp_path: Path) -> None:
    run_job(job("trainer.max_time=00:00:00:01", "trainer.max_steps=100000", "task.val_every=100000"))
    last = rows(tmp_path / "run")[-1]
    assert last["val/loss"]
    assert int(last["step"]) == result(tmp_path / "run")["steps"]


def test_a_time_limit_ends_a_run_after_a_whole_step(job: Job, tmp_path: Path) -> None:
    """A step accumulates three batches, and the time limit is reached during the first."""
    run = build(job("trainer.accumulate_grad_batches=3", "trainer.max_steps=100", "task.val_every=99"))
    run.trainer.callbacks.append(Clock(timedelta(microseconds=1)))  # type: ignore[attr-defined]
    run.trainer.fit(run.task, run.data)
    assert (run.trainer.global_step, run.trainer.fit_loop.epoch_loop.total_batch_idx) == (1, 2)


@pytest.mark.parametrize("task", ["memorization", "text"])
def test_evaluate_repeats_the_test_of_the_run(job: Job, tmp_path: Path, task: str) -> None:
    run_job(job(task=task))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    expected = result(tmp_path / "run")["test"]
    assert evaluate(checkpoint, "test", []) == expected
    # With another batch size, float32 rounds the terms differently; they are summed in float64.
    other = evaluate(checkpoint, "test", ["task.data.batch_size=1"])
    assert other == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}  # type: ignore[attr-defined]
    assert set(evaluate(checkpoint, "val", [])) == {name.replace("test/", "val/") for name in other}


def test_evaluate_refuses_invalid_requests(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="is not a file"):
        evaluate(tmp_path / "nothing.ckpt", "test", [])
    with pytest.raises(UserError, match="split must be val, test or all"):
        evaluate(checkpoint, "train", [])
    with pytest.raises(UserError, match="split=all works for texts only"):
        evaluate(checkpoint, "all", [])
    with pytest.raises(UserError, match="lenght"):
        evaluate(checkpoint, "test", ["task.lenght=3"])
    with pytest.raises(UserError, match="max_words=50 has no effect on a trained network"):
        evaluate(checkpoint, "test", ["task.data.max_words=50"])
    source = tmp_path / "run" / "config_source.yaml"
    source.rename(tmp_path / "elsewhere.yaml")
    with pytest.raises(UserError, match=r"config_source\.yaml is missing"):
        evaluate(checkpoint, "test", [])
    stray = tmp_path / "stray.ckpt"
    stray.write_bytes(checkpoint.read_bytes())
    with pytest.raises(UserError, match=r"no config\.yaml"):
        evaluate(stray, "test", [])


@pytest.mark.parametrize(("task", "other"), [("memorization", "text"), ("text", "memorization")])
def test_a_checkpoint_in_the_directory_of_another_run_is_refused(
    job: Job, tmp_path: Path, task: str, other: str
) -> None:
    for name in (task, other):
        run_job(job("stages=[fit]", task=name, directory=name))
    foreign = tmp_path / other / "checkpoints" / "best.ckpt"
    mixed = (tmp_path / task / "checkpoints" / "best.ckpt").replace(foreign)
    with pytest.raises(UserError, match=r"the checkpoint holds no '.*' for the data of this run"):
        evaluate(mixed, "test", [])


def test_data_that_cannot_be_imported_here_are_named(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    source = tmp_path / "run" / "config_source.yaml"
    source.write_text(source.read_text().replace("gridlstm.data.memorization", "my_tasks.counting"))
    with pytest.raises(UserError, match=r"task\.data\._target_=my_tasks\.counting\.\w+ cannot be imported"):
        evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [], trust=["my_tasks"])


def test_evaluate_refuses_options_of_other_splits(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    run_job(job("stages=[fit]", task="text", directory="text"))
    for task, split, option, message in (
        ("run", "val", "trainer.limit_test_batches=2", "no effect on split=val. Give trainer.limit_val_batches, or"),
        ("run", "test", "trainer.limit_val_batches=2", "no effect on split=test. Give trainer.limit_test_batches, or"),
        ("run", "test", "task.data.num_val=3", "no effect on split=test. Give task.data.num_test, or"),
        ("run", "val", "task.data.num_test=3", "no effect on split=val. Give task.data.num_val, or"),
        ("run", "test", "trainer.limit_test_batches=0.0", "leaves nothing to evaluate"),
        ("text", "all", "trainer.limit_val_batches=2", "no effect on split=all. Give trainer.limit_test_batches, or"),
        ("text", "all", "task.data.splits=[0.1,0.1,0.8]", "no effect on split=all, which is the whole text"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(tmp_path / task / "checkpoints" / "best.ckpt", split, [option])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU evaluates on it")
def test_multi_device_run_is_evaluated_on_one_cpu(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    found = evaluate(checkpoint, "test", [])
    source = tmp_path / "run" / "config_source.yaml"
    config = OmegaConf.load(source)
    config.trainer.accelerator, config.trainer.devices = "auto", -1  # like hardware=gpu trainer.devices=-1
    OmegaConf.save(config, source)
    assert evaluate(checkpoint, "test", []) == found


def test_option_counts_as_read_despite_rounding(job: Job) -> None:
    """One more sample does not add a batch, but the option must still count as used."""
    config = job("+task.samples=1500")
    config.trainer.max_steps = "${gridlstm.steps:${task.samples}}"
    check(config)


def test_without_checkpoints_a_run_ends_with_its_last_weights(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="enable_checkpointing=false conflicts") as refusal:
        run_job(job("trainer.enable_checkpointing=false"))
    advice = [word for word in str(refusal.value).replace(",", " ").split() if word.startswith("callbacks.")]
    run_job(job("trainer.enable_checkpointing=false", *advice))
    assert result(tmp_path / "run")["status"] == "completed"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_is_replaced_whole(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If writing the next checkpoint fails, the old one is unchanged, and no other file is left."""
    run = build(job())
    run.trainer.strategy.connect(run.task)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    run.trainer.strategy.checkpoint_io.save_checkpoint({"state_dict": {}}, path)
    before = path.read_bytes()

    def killed(content: object, file: BinaryIO) -> None:
        file.write(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run.trainer.strategy.checkpoint_io.save_checkpoint({"state_dict": {}}, path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_a_run_that_has_moved_keeps_its_best(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    best = result(tmp_path / "run")["best"]
    (tmp_path / "run").rename(tmp_path / "moved")
    run_job(job("ckpt_path=last", directory="moved"))
    found = result(tmp_path / "moved")
    assert found["status"] == "completed", "with nothing left to train, its best weights are tested"
    path = str(tmp_path / "moved" / "checkpoints" / "best.ckpt")
    assert found["best"] == {**best, "checkpoint": path}  # type: ignore[dict-item]


def test_a_run_behind_a_link_keeps_its_best(job: Job, tmp_path: Path) -> None:
    """Lightning resolves links in directory names, and loses the best score of a checkpoint with another name."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch")
    run_job(job("stages=[fit]", directory="link/run"))
    content = AtomicCheckpointIO().load_checkpoint(tmp_path / "link" / "run" / "checkpoints" / "last.ckpt")
    states = [state for state in content["callbacks"].values() if "dirpath" in state]
    assert {state["dirpath"] for state in states} == {str(tmp_path / "scratch" / "run" / "checkpoints")}
    assert {Path(path).parent.parent for state in states for path in state["best_k_models"]} == {
        tmp_path / "scratch" / "run"
    }


def test_resume_requires_the_original_text(job: Job, tmp_path: Path, text_file: Path) -> None:
    """The check applies even if only the test is left. A refused resume leaves the record unchanged."""
    content, text = text_file.read_text(), tmp_path / "mine.txt"
    text.write_text(content)

    def start(*options: str) -> None:
        config = job(*options, task="text")
        config.task.path = str(text)
        run_job(config)

    def left() -> list[object]:
        names = ("config.yaml", "config_source.yaml")
        return [result(tmp_path / "run"), *((tmp_path / "run" / name).read_text() for name in names)]

    start()
    before = left()
    text.write_text(content[1:] + content[0])
    for options in ([], ["trainer.max_steps=9"], ["stages=[test]"]):
        with pytest.raises(UserError, match=r"mine\.txt has changed since the checkpoint was written, at equal"):
            start("ckpt_path=last", *options)
        assert left() == before
    text.write_text(content)
    start("ckpt_path=last", "trainer.max_steps=9")
    assert left() != before


def test_a_home_directory_is_found(job: Job, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not expand ~ in task.path=~/…"""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text(text_file.read_text())
    config = job("stages=[fit]", task="text")
    config.task.path = "~/mine.txt"
    run_job(config)
    config = job("stages=[fit]", task="text", directory="other")
    config.task.path, config.init_from = "~/mine.txt", "~/run/checkpoints/best.ckpt"
    run_job(config)
    config = job("stages=[test]", task="text", directory="third")
    config.task.path, config.ckpt_path = "~/mine.txt", "~/run/checkpoints/best.ckpt"
    run_job(config)
    config.task.path, config.ckpt_path, config.stages = "~", None, ["fit"]
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read: it is a directory"):
        run_job(config)


def test_a_longer_training_drops_the_test_of_the_shorter(job: Job, tmp_path: Path) -> None:
    run_job(job())
    assert "test" in result(tmp_path / "run")
    run_job(job("ckpt_path=last", "trainer.max_steps=6", "stages=[fit]"))
    found = result(tmp_path / "run")
    assert (found["steps"], "test" in found) == (6, False)


@pytest.mark.parametrize("option", ["trainer.gradient_clip_val=5", "trainer.precision=64-true"])
def test_resume_with_other_numerics_is_refused(job: Job, option: str) -> None:
    run_job(job("stages=[fit]"))
    with pytest.raises(UserError, match=f"{option.partition('=')[0]}=.*, in the earlier run "):
        run_job(job("stages=[fit]", "ckpt_path=last", "trainer.max_steps=6", option))


def test_evaluate_uses_the_whole_split_by_default(job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The limit of the run does not apply; a limit on the command line does."""
    run_job(job("stages=[fit]", "trainer.limit_val_batches=1", "task.data.num_val=100"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with caplog.at_level(logging.INFO):
        whole = evaluate(checkpoint, "val", [])
    assert "had trainer.limit_val_batches=1, but the whole split" in caplog.text
    assert whole == evaluate(checkpoint, "val", ["trainer.limit_val_batches=null"])
    assert whole != evaluate(checkpoint, "val", ["trainer.limit_val_batches=1"])


def test_a_text_that_has_changed_since_is_named(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture, text_file: Path
) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(text_file.read_text())
    config = job("stages=[fit]", task="text")
    config.task.path = str(text)
    run_job(config)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    evaluate(checkpoint, "test", [])
    assert "has changed since" not in caplog.text
    text.write_text(text_file.read_text()[1000:])
    evaluate(checkpoint, "test", [f"task.path={text}"])
    assert "has changed since" not in caplog.text, "the user has named this text"
    evaluate(checkpoint, "test", [])
    assert "mine.txt has changed since the checkpoint was written" in caplog.text


def test_the_gpu_of_a_mac_is_not_used(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert build(job("hardware=auto")).trainer.strategy.root_device.type == "cpu"
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu does not work here"):
        build(job("hardware=gpu"))


def test_failed_run_records_its_error(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss became"):
        run_job(job("optimizer.lr=1e30"))
    written = result(tmp_path / "run")
    assert written["status"] == "failed"
    assert "loss became" in str(written["error"])


@pytest.mark.parametrize(
    ("precision", "cost", "warns"),
    [("64-true", 9.0, False), ("bf16-mixed", 0.5, False), ("bf16-mixed", 1.9, True), ("bf16-true", 12.0, True)],
)
def test_precision_is_a_plain_option(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, precision: str,
    cost: float, warns: bool,
) -> None:  # fmt: skip
    """The cost of products is that of another CPU."""
    monkeypatch.setattr("gridlstm.training.job.cost_of_products", lambda dtype: cost)
    run_job(job(f"trainer.precision={precision}", task="text"))
    assert math.isfinite(float(rows(tmp_path / "run")[-1]["train/loss"]))
    words = f"trainer.precision={precision}: on this CPU a matrix product in this type takes {cost:.1f} times as long"
    assert (words in caplog.text) is warns


def test_the_cost_of_products_is_measured() -> None:
    assert 0 < cost_of_products(torch.bfloat16) < float("inf")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_metrics_count_exactly_whatever_the_networks_precision(kind: torch.dtype) -> None:
    """Adding 1 would have no effect on a bfloat16 sum beyond 512, or on a float16 sum beyond 2,048."""
    module = torch.nn.ModuleDict({"metric": RatioOfSums()}).to(dtype=kind)
    metric = module["metric"]
    assert isinstance(metric, RatioOfSums)
    for _ in range(2):  # a reset restores the defaults
        metric.reset()
        for _ in range(5000):
            metric.update(torch.tensor(1.0), 2)
        assert metric.compute() == 0.5


def test_accumulated_gradients_equal_those_of_a_larger_batch(job: Job, tmp_path: Path) -> None:
    common = ("trainer.precision=64-true", "trainer.max_steps=2", "optimizer=sgd", "stages=[fit]")
    run_job(job(*common, "task.data.batch_size=8", directory="large"))
    run_job(job(*common, "task.data.batch_size=4", "trainer.accumulate_grad_batches=2", directory="small"))
    large, small = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("large", "small")
    )
    for name, value in large.items():
        torch.testing.assert_close(value, small[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "precision", "atol"),
    [("adam", "64-true", 1e-12), ("adamw", "64-true", 1e-12), ("adam", "bf16-mixed", 1e-3)],
)
def test_a_fused_step_clips_and_updates_as_others_do(
    job: Job, tmp_path: Path, optimizer: str, precision: str, atol: float
) -> None:
    """Gradients are clipped far below eps, so all steps are below 0.01; without clipping some would be near 1.

    In bfloat16 a weight that differs by rounding may change a gradient by a percent, and so a step by 0.0001.
    """
    common = (
        f"optimizer={optimizer}", f"trainer.precision={precision}", "trainer.gradient_clip_val=1e-4",
        "optimizer.eps=1e-2", "optimizer.lr=1.0", "trainer.max_steps=3", "stages=[fit]",
    )  # fmt: skip
    for fused in ("true", "false"):
        run_job(job(*common, f"optimizer.fused={fused}", directory=fused))
    fused, others = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("true", "false")
    )
    for name, value in fused.items():
        torch.testing.assert_close(value, others[name], rtol=0, atol=atol)


def test_overfitting_learns_its_repeated_batches(job: Job, tmp_path: Path) -> None:
    run_job(
        job(
            "debug=overfit", "trainer.max_steps=300", "task.val_every=300", "optimizer.lr=0.02",
            "trainer.log_every_n_steps=100", "model.hidden_size=16", "stages=[fit]",
        )
    )  # fmt: skip
    assert float(rows(tmp_path / "run")[-1]["train/accuracy"]) > 0.95


def test_a_character_model_beats_the_bigrams(job: Job, tmp_path: Path) -> None:
    """After an a (3/5 of the symbols), a bigram model needs one bit, but the period of five determines the symbol."""
    text = tmp_path / "period.txt"
    text.write_text("aabab" * 2000)
    steps = ("trainer.max_steps=60", "task.val_every=60", "trainer.log_every_n_steps=60", "optimizer.lr=0.02")
    score = run_job(job(*steps, f"task.path={text}", "model.hidden_size=16", "stages=[fit]", task="text"))
    assert score < 0.2


def test_the_log_shows_throughput_and_time_left(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_job(job("callbacks.progress.every_seconds=0", task="text"))
    lines = [record.message for record in caplog.records if record.message.startswith("step ")]
    assert any("train/bpc" in line for line in lines)
    assert all("bytes/s" in line and "ETA 0:" in line for line in lines)
    assert any("all files are in" in record.message for record in caplog.records)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_a_schedule_without_an_end_is_refused(job: Job, schedule: str) -> None:
    with pytest.raises(UserError, match=r"Set trainer\.max_steps or trainer\.max_time"):
        run_job(job(f"scheduler={schedule}", "trainer.max_steps=-1"))


def test_one_cycle_is_a_warm_up_and_a_cosine(job: Job, tmp_path: Path) -> None:
    options = ("scheduler=one_cycle", "scheduler.warmup=0.2", "scheduler.end=0.1", "trainer.log_every_n_steps=1")
    run_job(job(*options, "trainer.max_steps=10", "stages=[fit]", "optimizer.lr=0.01"))
    found = [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]]
    # After each of the steps 1 to 10, the learning rate is that of the next step.
    cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * n / 8)) for n in range(9)]
    assert found == pytest.approx([0.01 * share for share in (0.04 + 0.96 / 2, *cosine)], rel=1e-9)


def test_all_ranks_follow_the_clock_that_is_furthest() -> None:
    """Otherwise their learning rates would differ."""

    def reduce(share: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert (float(share), reduce_op) == (0.25, "max")
        return torch.tensor(0.75, dtype=torch.float64)  # another rank is further

    class Fixed(Timer):
        def time_elapsed(self, stage: str = "train") -> float:
            return 10.0

        def time_remaining(self, stage: str = "train") -> float:
            return 30.0

    trainer: Any = SimpleNamespace(
        callbacks=[Fixed()], world_size=2, global_step=1, max_steps=-1,
        strategy=SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce),
    )  # fmt: skip
    share = TrainingShare()
    share.look_at_clock(trainer)
    assert share.at(trainer) == 0.75


def test_a_schedule_follows_the_clock(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the patched clock, each step takes a fifth of a second."""
    now, step = [0.0], SequenceTask.training_step

    def training_step(*arguments: Any) -> torch.Tensor:
        now[0] += 0.2
        return step(*arguments)

    monkeypatch.setattr(SequenceTask, "training_step", training_step)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: now[0]))
    options = ("scheduler=cosine", "trainer.max_time=00:00:00:04", "trainer.log_every_n_steps=1", "optimizer.lr=1e-3")
    run_job(job(*options, "trainer.max_steps=-1", "stages=[fit]"))
    found = [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]]
    # The rate that a step logs is that of the clock before it.
    expected = [0.5e-3 * (1 + math.cos(math.pi * 0.2 * n / 4)) for n in range(20)]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("stages=[fitt]", "stages must be one or more of"),
        ("optimizer.lr=0", r"optimizer\.lr must be above 0, got 0"),
        ("optimizer.lr=-1", "Invalid learning rate: -1"),
        ("stages=[test]", "needs trained weights"),
        ("ckpt_path=nowhere.ckpt", "is not a file"),
        (["stages=[test]", "ckpt_path=last"], r"has no checkpoints/last\.ckpt to test"),
        (
            "+model.bias=true",
            r"model\.bias does not exist\. gridlstm\.models\.grid2d\.Grid2d has input_size",
        ),
        ("stages=test", r"stages must be a list, got test. Use stages=\[test\]"),
        ("seed=-1", "seed must be"),
        ("seed=99999999999", "seed must be"),
        ("task.monitor=val/foo", "task.monitor must be one of val/loss, val/accuracy"),
        ("task.monitor=val/loss", r"task\.mode=max prefers the worst value of val/loss, .* Use task\.mode=min"),
        ("callbacks.checkpoint.mode=min", r"callbacks\.checkpoint\.mode=min prefers .* Use .*\.mode=max"),
        ("callbacks.checkpoint.monitor=accuracy", "callbacks.checkpoint.monitor must be one of val/loss, val/acc"),
        ("+trainer.max_epochs=3", r"trainer\.max_epochs cannot be set: .* trainer\.max_steps"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches must be at least 1"),
        (["trainer.val_check_interval=00:00:10:00", "trainer.devices=2"], "uses the clock of each process"),
        ("trainer.val_check_interval=0", "val_check_interval must be at least 1"),
        (
            ["trainer.val_check_interval=00:00:10:00", "trainer.accumulate_grad_batches=2"],
            "can fall inside a step of trainer.accumulate_grad_batches=2 batches",
        ),
        ("trainer.overfit_batches=0.5", "trainer: .* must be `1.0` or an int"),
        ("trainer.max_time=00:00:00:00", "max_time must be above 0"),
        (
            ["callbacks=[default,weight_averaging]", "trainer.precision=bf16-true"],
            "needs weights of float32 or float64, got bfloat16",
        ),
        ("trainer.max_time=5", "max_time must be days:hours:minutes:seconds, such as 00:01:30:00, .* got 5"),
        ("trainer.enable_checkpointing=false", "Add callbacks.checkpoint=null callbacks.last_checkpoint=null"),
        ("trainer.gradient_clip_val=-1", "gradient_clip_val must be above 0"),
        ("trainer.gradient_clip_val=abc", r"gradient_clip_val must be .* got 'abc'"),
        ("trainer.gradient_clip_val=[1]", r"gradient_clip_val must be .* got \[1\]"),
        ("trainer.accumulate_grad_batches=1.5", r"accumulate_grad_batches must be a whole number, got 1\.5"),
        ("model.time_regularizers=[Dropout]", r"time_regularizers must be a list of nodes .* but contains 'Dropout'"),
        (
            "model.time_regularizers=[{_target_: gridlstm.regularizers.Dropout, p: abc}]",
            r"model\.time_regularizers\[0\]\.p must be a number, got 'abc'",
        ),
        (
            "model.time_regularizers=[{_target_: gridlstm.regularizers.Dropout, q: 3}]",
            r"model\.time_regularizers\[0\]\.q does not exist\. gridlstm\.regularizers\.Dropout has",
        ),
        (
            ["callbacks=[default,weight_averaging]", "callbacks.weight_averaging.update_every_n_steps=0"],
            "update_every_n_steps must be at least 1, got 0",
        ),
        (
            ["callbacks=[default,weight_averaging]", "callbacks.weight_averaging.decay=1.0"],
            r"decay must be at least 0 and below 1, got 1\.0",
        ),
        ("task.network.forget_bias=nan", r"model\.time\.forget_bias must be a number, got nan"),
        ("task.network.forget_bias=inf", r"model\.time\.forget_bias must be a number, got inf"),
        ("optimizer.lr=nan", "optimizer"),
        ("trainer.max_steps=0", "max_steps must be at least 1, or -1 for no end, got 0"),
        ("trainer.max_steps=-5", "max_steps must be at least 1, or -1 for no end, got -5"),
        ("+task.digits=3", "task=memorization has no option digits, so task.digits=3 would have no effect"),
        ("task.data.seed=-1", "seed must be 0 or more, got -1"),
        ("optimizer.betas=[0.9]", "optimizer"),
        ("optimizer.betas=0.9", r"optimizer\.betas must be a list, got 0\.9"),
        (["scheduler=epoch_decay", "scheduler.gamma=2"], "scheduler.gamma must be above 0 and at most 1, got 2"),
        (["scheduler=exponential", "scheduler.gamma=-0.5"], r"scheduler\.gamma must be above 0, got -0\.5"),
        (["callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=0"], "patience must be at least 1"),
        (["callbacks=[default,early_stopping]", "callbacks.early_stopping.min_delta=-1"], "delta must be at least 0"),
        ("task.alphabet=9223372036854775808", "do not fit into the memory of any machine"),
        ("task.length=99999999999999999999", "do not fit into the memory of any machine"),
        ("task.data.num_val=0", "num_val must be from 1 to"),
        ("task.data.num_test=1000000000", "num_test must be from 1 to"),
        ("match=null", r"match is a group of options, got match=None\. Set single options: match"),
        ("report=null", "report is a group of options"),
        (
            "callbacks.learning_curve=true",
            r"callbacks\.learning_curve must be a node of options, .* got True",
        ),
        ("callbacks=early_stopping", r"the chosen callbacks lack checkpoint, .* Use callbacks=\[default,…\]"),
        ("callbacks.checkpoint.save_top_k=3", r"would write several checkpoints to best\.ckpt"),
        ("trainer.limit_test_batches=0", r"leaves nothing to test. Use stages=\[fit\]"),
        ("trainer.limit_val_batches=0", "leaves val/accuracy, the score of this task, without a value"),
    ],
)
def test_a_job_that_cannot_work_is_refused(job: Job, option: str | list[str], message: str) -> None:
    options = [option] if isinstance(option, str) else option
    with pytest.raises(UserError, match=message):
        run_job(job(*options, *(["callbacks.checkpoint=null"] if "limit" in options[0] else [])))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("trainer.precision=31-true", r"trainer\.precision must be one of 16-true, .* got '31-true'"),
        ("trainer.precision=16-true", r"optimizer\.eps=1e-08 rounds to 0 in trainer\.precision=16-true"),
        ("scheduler=epoch_decay", "this task's data has no epochs"),
        ("trainer.limit_test_batches=0.4", r"limit_test_batches=0\.4 of 2 batches is less than one"),
    ],
)
def test_late_failures_are_refused_before_the_run_begins(job: Job, tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_job(job(option))
    assert not (tmp_path / "run").exists()


def test_a_share_below_one_test_batch_is_refused_before_training(job: Job, tmp_path: Path) -> None:
    """The size of these data is known only after they have been read."""
    options = ("task.data._target_=tests.finite.FiniteMemorization", "trainer.limit_test_batches=0.4")
    with pytest.raises(UserError, match=r"limit_test_batches=0\.4 of 2 batches is less than one"):
        run_job(job(*options))
    assert not (tmp_path / "run" / "result.json").exists()


def test_one_precision_has_several_names(job: Job, tmp_path: Path) -> None:
    run_job(job("trainer.precision=32", "stages=[fit]"))
    run_job(job("trainer.precision=32-true", "trainer.max_steps=6", "ckpt_path=last", "stages=[fit]"))
    assert result(tmp_path / "run")["steps"] == 6
    with pytest.raises(UserError, match=r"trainer\.precision='16-mixed', in the earlier run '32-true'"):
        run_job(job("trainer.precision=16", "trainer.max_steps=8", "ckpt_path=last", "stages=[fit]"))


def test_a_resumed_overfitting_is_refused(job: Job) -> None:
    run_job(job("debug=overfit", "stages=[fit]"))
    with pytest.raises(UserError, match="repeats the first batches of a training"):
        run_job(job("debug=overfit", "stages=[fit]", "trainer.max_steps=6", "ckpt_path=last"))


@pytest.mark.parametrize(
    ("task", "model", "noise"),
    [
        ("memorization", "grid2d", ["model.depth_regularizers=[{_target_: gridlstm.regularizers.FrameDropout}]"]),
        ("parity", "grid1d", []),  # it has no option for noise
    ],
)
def test_regularizers_receive_the_progress_of_training(job: Job, task: str, model: str, noise: list[str]) -> None:
    run = build(job(*noise, "trainer.max_steps=4", task=task, model=model))
    seen = []
    (grid,) = (module for module in run.task.modules() if isinstance(module, Grid))
    grid.register_forward_pre_hook(lambda *_: seen.append(grid.progress) if run.trainer.training else None)
    run.trainer.fit(run.task, run.data)
    assert seen == [0, 0.25, 0.5, 0.75]


def test_noise_differs_by_batch_rank_and_seed_and_by_nothing_else(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, rank: int) -> list[int]:
        """Return a random number of every training step."""
        config = job(f"seed={seed}", "stages=[fit]")
        torch.manual_seed(seed)  # as a run does
        run = build(config)
        monkeypatch.setattr(type(run.task), "global_rank", property(lambda task: rank))
        numbers: list[int] = []

        def draw(*_: Any) -> None:
            if run.trainer.training:
                numbers.append(int(torch.randint(2**62, ())))

        run.task.model.register_forward_pre_hook(draw)
        run.trainer.fit(run.task, run.data)
        return numbers

    first, again, other_rank, other_seed = drawn(1, 0), drawn(1, 0), drawn(1, 1), drawn(2, 0)
    assert first == again
    assert len(first) == 4
    assert len({*first, *other_rank, *other_seed}) == 12


def test_evaluate_finds_the_text_from_anywhere(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The command must not use a file of the same name in the working directory."""
    for name in ("there", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "text.txt").write_text("all of this is text, " * 200)
    (tmp_path / "elsewhere" / "text.txt").write_text("this is all of text, " * 200)
    monkeypatch.chdir(tmp_path / "there")
    run_job(job("task.path=text.txt", "stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    found = evaluate(checkpoint, "test", [])
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate(checkpoint, "test", []) == found
    assert evaluate(checkpoint, "test", ["task.path=text.txt"]) != found
    (tmp_path / "elsewhere" / "short.txt").write_text("all of this is text, " * 4)
    assert evaluate(checkpoint, "test", ["task.path=short.txt"])["test/bpc"] > 0, (
        "a text may be shorter than a training stream"
    )
    with pytest.raises(UserError, match="task=text chooses from a group"):
        evaluate(checkpoint, "test", ["task=text"])
    with pytest.raises(UserError, match=r"config\.yaml for all options"):
        evaluate(checkpoint, "test", ["task.data.window=[x].txt"])
    with pytest.raises(
        UserError, match=r"task\.data\.batch_sise does not exist\. Did you mean batch_size\? See .*config\.yaml"
    ):
        evaluate(checkpoint, "test", ["task.data.batch_sise=3"])
    for split, options, warned in (
        ("test", ["task.data.splits=[0.1,0.1,0.8]"], True),
        ("test", ["task.data.splits=[0.1,0.1,0.8]", f"task.path={tmp_path / 'elsewhere' / 'text.txt'}"], False),
    ):
        caplog.clear()
        evaluate(checkpoint, split, options)
        assert ("evaluated part may include training data" in caplog.text) == warned
    for option in ("callbacks.divergence.factor=2", "trainer.gradient_clip_val=2", "task.lr=1", "seed=2"):
        with pytest.raises(UserError, match=f"{option} has no effect on a trained network"):
            evaluate(checkpoint, "test", [option])


def test_weights_that_do_not_fit_are_refused_in_one_sentence(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="the weights do not fit this network"):
        run_job(job("stages=[test]", f"ckpt_path={checkpoint}", "model.hidden_size=9", directory="other"))
    (tmp_path / "none.ckpt").write_text("no checkpoint at all")
    with pytest.raises(UserError, match="cannot be read: it is not a checkpoint"):
        run_job(job("stages=[test]", f"ckpt_path={tmp_path / 'none.ckpt'}", directory="other"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"best\.ckpt cannot be read: "):
        run_job(job(f"ckpt_path={checkpoint}", directory="other"))


def test_another_text_is_encoded_with_the_networks_words(job: Job, tmp_path: Path) -> None:
    """The network's words may differ from the most frequent words of the other text."""
    for name, counts in (("a", (9, 5, 3, 2, 1)), ("b", (1, 2, 3, 5, 9))):
        words = [word for word, count in zip("vwxyz", counts, strict=True) for _ in range(count)]
        (tmp_path / f"{name}.txt").write_text(" ".join(words * 40))
    run_job(
        job(f"task.path={tmp_path}/a.txt", "task.data.level=word", "task.data.max_words=4", "stages=[fit]", task="text")
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["monitor"] == "val/bpw", "the score must be in bits per word"
    assert "val/bpw" in result["best"]
    config = load_config(tmp_path / "run" / "checkpoints" / "best.ckpt", [f"task.path={tmp_path}/b.txt"])
    content = load_content(tmp_path / "run" / "checkpoints" / "best.ckpt")
    corpus = make_data(config, data_state(config, content)).corpus  # type: ignore[attr-defined]  # of a text
    known = corpus.vocabulary.symbols
    assert set(known) == {"v", "w", "x", "<unk>"}
    counts = {word: int((corpus.ids == known.index(word)).sum()) for word in known}
    assert counts == {"v": 40, "w": 80, "x": 120, "<unk>": 560}


def test_evaluate_follows_references(job: Job, tmp_path: Path, text_file: Path) -> None:
    """task.data.source.path refers to task.path, so another task.path must not evaluate the old text."""
    run_job(job("stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    backwards = tmp_path / "backwards.txt"
    backwards.write_text(text_file.read_text()[::-1])
    assert evaluate(checkpoint, "test", [f"task.path={backwards}"]) != evaluate(checkpoint, "test", [])
    with pytest.raises(UserError, match=r"nothing\.txt"):
        evaluate(checkpoint, "test", ["task.path=nothing.txt"])
    other = tmp_path / "other.txt"
    other.write_text("another alphabet " * 500)
    with pytest.raises(UserError, match=r"another text: it knows 1\d symbols .*, 8 of them unknown: '"):
        evaluate(checkpoint, "test", [f"task.path={other}"])
    with pytest.raises(UserError, match="weights do not fit"):
        evaluate(checkpoint, "test", ["model.hidden_size=9"])


def test_a_text_may_have_any_name(job: Job, tmp_path: Path, text_file: Path) -> None:
    run_job(job("stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    for name in ("Emma: a novel.txt", "notes #2.txt", "[1,2]", "1984"):
        (tmp_path / name).write_text(text_file.read_text())
        assert evaluate(checkpoint, "test", [f"task.path={tmp_path / name}"]) == evaluate(checkpoint, "test", [])


def test_ctrl_c_during_evaluation_raises_keyboard_interrupt(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(job("stages=[fit]", task="text"))

    def interrupted(data: TextData) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextData, "test_dataloader", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):  # the command turns it into exit status 130
            evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [])
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores the signal after the first one


def test_text_with_fewer_symbols_uses_the_networks_vocabulary(job: Job, tmp_path: Path, text_file: Path) -> None:
    run_job(job("stages=[fit]", "task.data.splits=[0.8,0.1,0.1]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    text = text_file.read_text()
    digits = "".join(text[-len(text) // 10 :].split("times"))  # lacks t, m and e
    some, all_ = tmp_path / "some.txt", tmp_path / "all.txt"
    some.write_text(digits * 30)
    all_.write_text(digits * 29 + text)  # the test split ends before the last line
    splits = f"task.data.splits=[{len(digits) * 20},{len(digits)},{len(digits) * 2}]"
    few, many = (evaluate(checkpoint, "test", [f"task.path={path}", splits]) for path in (some, all_))
    assert few == many


def test_testing_again_keeps_the_record_of_the_training(job: Job, tmp_path: Path) -> None:
    run_job(job())
    directory = tmp_path / "run"
    before, table = result(directory), rows(directory)
    run_job(job("stages=[test]", f"ckpt_path={directory}/checkpoints/best.ckpt"))
    after = result(directory)
    assert rows(directory) == table
    for name in ("score", "best", "final", "steps", "samples", "fit_seconds", "test"):
        assert after[name] == before[name], name


def test_a_finished_run_that_is_resumed_keeps_its_record(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    before = result(tmp_path / "run")
    run_job(job("stages=[fit]", "ckpt_path=last"))
    after = result(tmp_path / "run")
    assert {**before["final"], "steps": before["steps"]} == {**after["final"], "steps": after["steps"]}  # type: ignore[dict-item]
    assert after["fit_seconds"] >= before["fit_seconds"]  # type: ignore[operator]
    assert after["score"] == before["score"]


@pytest.mark.parametrize(
    "option", ["optimizer.lr=0.1", "model.hidden_size=9", "task.alphabet=5", "seed=2", "scheduler=cosine"]
)
def test_a_resume_with_other_options_is_refused(job: Job, tmp_path: Path, option: str) -> None:
    """The checkpoint's optimizer would replace the one on the command line, but the record would show the latter."""
    run_job(job("stages=[fit]"))
    config = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match="can only be resumed with the options it was trained with"):
        run_job(job("ckpt_path=last", option))
    assert (tmp_path / "run" / "config.yaml").read_text() == config


class Smoothed(TagSequence):
    """A user's own objective with an option."""

    def __init__(
        self, model: SequenceModel, spec: Spec, optimizer: MakeOptimizer, smoothing: float, **options: Any
    ) -> None:
        super().__init__(model, spec, optimizer, **options)
        self.smoothing = smoothing


def test_a_resume_with_another_objective_is_refused(job: Job) -> None:
    own = ("task.objective._target_=tests.test_training.Smoothed", "stages=[fit]")
    run_job(job(*own, "+task.objective.smoothing=0.1"))
    with pytest.raises(UserError, match=r"task\.objective\.smoothing=0\.2, in the earlier run 0\.1"):
        run_job(job(*own, "+task.objective.smoothing=0.2", "ckpt_path=last"))


def test_rows_of_accumulated_steps_cover_all_their_batches(job: Job, tmp_path: Path) -> None:
    options = ("trainer.accumulate_grad_batches=3", "task.val_every=6", "trainer.log_every_n_steps=2", "stages=[fit]")
    run_job(job(*options))
    assert [(row["step"], row["samples"]) for row in rows(tmp_path / "run")] == [("2", "90"), ("4", "180")]


def test_sanity_validation_is_not_recorded(job: Job, tmp_path: Path) -> None:
    run_job(job("trainer.num_sanity_val_steps=1", "stages=[fit]"))
    assert [row["step"] for row in rows(tmp_path / "run")] == ["2", "4"]


@pytest.mark.parametrize("option", ["trainer.enable_progress_bar=true", "trainer.enable_progress_bar=false"])
def test_resume_after_max_time_is_refused_and_changes_nothing(job: Job, tmp_path: Path, option: str) -> None:
    options = ("trainer.max_time=00:00:00:01", "trainer.max_steps=100000", "task.val_every=100000", option)
    run_job(job(*options))
    before = result(tmp_path / "run")
    del before["trained_to_end"]  # a run that is killed before it records this leaves such a result
    (tmp_path / "run" / "result.json").write_text(json.dumps(before))
    with pytest.raises(UserError, match=r"max_time limits the whole run.* Raise it"):
        run_job(job(*options, "stages=[fit]", "ckpt_path=last"))
    assert result(tmp_path / "run") == before


def test_two_runs_do_not_share_a_directory(job: Job, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="another run is writing"):
        run_job(job())


def test_the_profile_is_printed(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_job(job("debug=profile", "trainer.max_steps=2", "stages=[fit]"))
    assert "run_training_batch" in caplog.text
