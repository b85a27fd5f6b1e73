"""The mean of a run's last checkpoints, as a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from tests.conftest import run_python

from gridlstm.average import average, last_checkpoints
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.publish import publish
from gridlstm.tasks.base import Task
from gridlstm.training.checkpoint import load_content
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]


def with_last(job: Job, *options: str, **named: str) -> DictConfig:
    """Return a job of four steps that keeps the checkpoints of its validations at steps 2 and 4."""
    return job("callbacks=[default,last_checkpoints]", "stages=[fit]", *options, **named)


def test_mean_of_checkpoints_is_that_of_their_weights_and_is_evaluated(job: Job, tmp_path: Path) -> None:
    run_job(with_last(job, "trainer.precision=64-true"))
    kept = last_checkpoints(tmp_path / "run")
    assert [path.name for path in kept] == ["step-2.ckpt", "step-4.ckpt"]
    done = run_python("-m", "gridlstm.average", f"ckpt={tmp_path / 'run'}", check=True)
    mean = Path(done.stdout.strip())
    assert mean == tmp_path / "run" / "checkpoints" / "average.ckpt"
    one, two, found = (load_content(path)["state_dict"] for path in (*kept, mean))
    assert list(found) == list(one)
    for name, value in found.items():
        torch.testing.assert_close(value, (one[name] + two[name]) / 2, rtol=1e-15, atol=0)
    assert any(not torch.equal(one[name], two[name]) for name in one)
    scores = [evaluate(path, "test", [])["test/loss"] for path in (*kept, mean)]
    assert len(set(scores)) == 3
    published = publish(mean, tmp_path / "public")
    assert evaluate(published[0], "test", [])["test/loss"] == scores[2]


def test_a_card_of_a_mean_has_its_steps_and_no_score_of_other_weights(job: Job, tmp_path: Path) -> None:
    run_job(job("callbacks=[default,last_checkpoints]"))
    mean = average(last_checkpoints(tmp_path / "run"))
    card = publish(mean, tmp_path / "public")[-1].read_text()
    assert "| weights | mean of the checkpoints of steps 2, 4 |" in card
    assert "test/loss" not in card
    assert "best val/" not in card


def test_integer_buffers_are_those_of_the_latest_checkpoint(job: Job, tmp_path: Path) -> None:
    run_job(with_last(job))
    one, two = last_checkpoints(tmp_path / "run")
    for path, number in ((one, 2), (two, 5)):  # such as the batches that a normalization has seen
        content = load_content(path)
        content["state_dict"] |= {"count": torch.tensor(number), "seen": torch.tensor(number > 2)}
        torch.save(content, path)
    for order in ([one, two], [two, one]):
        found = load_content(average(order))["state_dict"]
        assert (int(found["count"]), bool(found["seen"])) == (5, True)
        assert found["count"].dtype == torch.int64


def test_a_run_keeps_the_checkpoints_of_its_last_validations(job: Job, tmp_path: Path) -> None:
    few = ("callbacks.last_checkpoints.number=2", "task.val_every=1")
    run_job(with_last(job, *few, "trainer.max_steps=3"))
    assert [path.name for path in last_checkpoints(tmp_path / "run")] == ["step-2.ckpt", "step-3.ckpt"]
    run_job(with_last(job, *few, "trainer.max_steps=12", "ckpt_path=last"))
    assert [path.name for path in last_checkpoints(tmp_path / "run")] == ["step-11.ckpt", "step-12.ckpt"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best"]["checkpoint"].endswith("best.ckpt")


def test_a_run_that_resumes_from_an_earlier_checkpoint_drops_the_later_ones(job: Job, tmp_path: Path) -> None:
    often = ("task.val_every=1", "callbacks.last_checkpoints.number=9")
    run_job(with_last(job, *often, "trainer.max_steps=4"))
    earlier = tmp_path / "run" / "checkpoints" / "step-2.ckpt"
    run_job(with_last(job, *often, "trainer.max_steps=3", f"ckpt_path={earlier}"))
    assert [path.name for path in last_checkpoints(tmp_path / "run")] == ["step-1.ckpt", "step-2.ckpt", "step-3.ckpt"]


@pytest.mark.parametrize(
    ("lost", "start", "steps", "expected"), [(False, "step-2", 3, (0.25, 3)), (True, "last", 6, (0.125, 6))]
)
def test_a_best_checkpoint_that_is_lost_or_of_a_later_step_is_chosen_anew(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool, start: str, steps: int, expected: object
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"

    def log(task: Task, stage: str) -> None:
        score = {2: 0.5, 3: 0.25, 4: 1.0}.get(task.global_step, 0.125)
        for name in task.metric_names:
            task.log(f"{stage}/{name}", score, on_step=False, on_epoch=True, logger=False)

    def best() -> tuple[float, int]:
        found = json.loads((tmp_path / "run" / "result.json").read_text())["best"]
        return found["val/accuracy"], load_content(Path(found["checkpoint"]))["global_step"]

    monkeypatch.setattr(Task, "_log_metrics", log)
    often = ("task.val_every=1", "callbacks.last_checkpoints.number=9")
    run_job(with_last(job, *often, "trainer.max_steps=4"))
    assert best() == (1.0, 4)
    if lost:
        (checkpoints / "best.ckpt").unlink()
    run_job(with_last(job, *often, f"trainer.max_steps={steps}", f"ckpt_path={checkpoints / start}.ckpt"))
    assert best() == expected


def test_what_has_no_mean_is_refused(job: Job, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_job(with_last(job, directory=name))
    here, there = (last_checkpoints(tmp_path / name) for name in ("a", "b"))
    with pytest.raises(UserError, match=r"a mean needs two checkpoints or more, got 1\. Give ckpt=A,B"):
        average(here[:1])
    with pytest.raises(UserError, match=r"step-2\.ckpt is given twice, and would count twice\. .*Remove one"):
        average([*here, here[0].parent / ".." / "checkpoints" / "step-2.ckpt"])
    with pytest.raises(UserError, match=r"comes from another run than .*Expected checkpoints of one run\. Remove it"):
        average([here[0], there[0]])
    with pytest.raises(UserError, match=r"must be a \.ckpt file in .*/a, whose config\.yaml describes the network"):
        average(here, tmp_path / "mean.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is a checkpoint of the run, and would be overwritten"):
        average(here, here[0].with_name("last.ckpt"))
    with pytest.raises(UserError, match=r"has no checkpoints/step-….ckpt\. Train with callbacks=\[default,last_che"):
        last_checkpoints(tmp_path / "nowhere")
    changed = load_content(here[1])
    name = next(iter(changed["state_dict"]))
    torch.save(changed | {"state_dict": {**changed["state_dict"], name: torch.zeros(1)}}, here[1])
    with pytest.raises(UserError, match=r"step-4\.ckpt and .*/step-2\.ckpt differ in their network\. .*Remove"):
        average(here)


def test_a_mean_of_checkpoints_with_other_data_is_refused(job: Job, tmp_path: Path) -> None:
    run_job(with_last(job, task="text"))
    kept = last_checkpoints(tmp_path / "run")
    content = load_content(kept[1])
    content["TextData"]["vocabulary"] = content["TextData"]["vocabulary"][::-1]
    torch.save(content, kept[1])
    with pytest.raises(UserError, match=r"step-4\.ckpt and .*/step-2\.ckpt differ in their data\. Expected"):
        average(kept)


def test_training_is_not_resumed_from_a_mean(job: Job, tmp_path: Path) -> None:
    run_job(with_last(job))
    mean = average(last_checkpoints(tmp_path / "run"))
    with pytest.raises(UserError, match=r"contains weights but no training state\. .*Use init_from="):
        run_job(with_last(job, f"ckpt_path={mean}", "trainer.max_steps=8"))
    run_job(with_last(job, f"init_from={mean}", directory="new"))
