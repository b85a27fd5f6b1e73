"""Training until a criterion is met."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from tests.test_training import result, rows

from gridlstm.data.base import Batch
from gridlstm.data.spec import Spec
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.tasks.base import Prediction
from gridlstm.tasks.tag_sequence import TagSequence
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]
EASY = (
    "callbacks=criterion", "task.length=1", "task.alphabet=2", "model.hidden_size=16", "task.val_every=10",
    "trainer.max_steps=300", "stages=[fit]",
)  # fmt: skip
"""Overrides of a run that meets its criterion after a few dozen steps."""


def test_training_stops_once_every_answer_is_correct(job: Job, tmp_path: Path) -> None:
    run_job(job(*EASY))
    found = result(tmp_path / "run")
    *before, last = (row for row in rows(tmp_path / "run") if row["val/loss"])
    assert float(last["val/sequence_accuracy"]) == 1 > max(float(row["val/sequence_accuracy"]) for row in before)
    assert found["samples_to_solve"] == found["samples"] == int(last["samples"]) == int(last["samples_to_solve"])
    assert found["samples"] == 15 * int(last["step"]) < 15 * 300
    assert found["score"] == 1


def test_unsolved_run_trains_to_max_steps(job: Job, tmp_path: Path) -> None:
    run_job(job(*EASY, "trainer.max_steps=20", "optimizer.lr=1e-9"))
    found = result(tmp_path / "run")
    assert found["samples_to_solve"] is None
    assert found["steps"] == 20


def test_result_omits_samples_to_solve_without_a_criterion(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    assert "samples_to_solve" not in result(tmp_path / "run")


def test_a_solved_run_that_is_resumed_stays_solved(job: Job, tmp_path: Path) -> None:
    run_job(job(*EASY))
    before = result(tmp_path / "run")
    run_job(job(*EASY, "ckpt_path=last"))
    after = result(tmp_path / "run")
    for name in ("samples_to_solve", "samples", "steps", "score"):
        assert after[name] == before[name], name


def test_a_resumed_run_is_solved_when_an_uninterrupted_one_is(job: Job, tmp_path: Path) -> None:
    run_job(job(*EASY, directory="whole"))
    run_job(job(*EASY, "trainer.max_steps=20", directory="parts"))
    assert result(tmp_path / "parts")["samples_to_solve"] is None
    run_job(job(*EASY, "ckpt_path=last", directory="parts"))
    assert result(tmp_path / "parts")["samples_to_solve"] == result(tmp_path / "whole")["samples_to_solve"]
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_changed_criterion_recomputes_samples_to_solve(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_job(job(*EASY, "callbacks.criterion.at_least=0.1"))
    early = result(tmp_path / "run")["samples_to_solve"]
    run_job(job(*EASY, "ckpt_path=last"))
    assert result(tmp_path / "run")["samples_to_solve"] > early  # type: ignore[operator]
    assert f"whether it was met within the first {early:,} samples" in caplog.text
    run_job(job(*EASY, "callbacks=default", "trainer.max_steps=310", "ckpt_path=last"))
    assert "samples_to_solve" not in result(tmp_path / "run"), "this part of the run had no criterion"


def test_resume_with_another_validation_size_is_refused(job: Job) -> None:
    run_job(job(*EASY, "callbacks.criterion.at_least=0.1"))
    with pytest.raises(UserError, match=r"task\.data\.num_val=500, in the earlier run"):
        run_job(job(*EASY, "callbacks.criterion.at_least=0.1", "ckpt_path=last", "task.data.num_val=500"))


@pytest.mark.parametrize("debug", ["debug=smoke", "trainer.fast_dev_run=true"])
def test_debug_run_needs_no_full_validation(job: Job, tmp_path: Path, debug: str) -> None:
    run_job(job(*EASY, debug, "stages=[fit]", *(["callbacks.checkpoint=null"] if "fast" in debug else [])))
    written = result(tmp_path / "run")
    assert written["status"] == "completed"
    assert written.get("samples_to_solve") is None, "a part of the validation solves nothing"


def test_smoke_run_takes_whole_accumulated_steps(job: Job, tmp_path: Path) -> None:
    run_job(job("debug=smoke", "trainer.max_steps=2", "trainer.accumulate_grad_batches=3", "stages=[fit]"))
    assert [row["step"] for row in rows(tmp_path / "run") if row["val/loss"]] == ["1", "2"]


def test_curriculum_cut_short_is_logged(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    run_job(job("task.data.min_digits=1", "task.data.curriculum=60", "trainer.max_steps=4", task="addition"))
    assert "all lengths after 60 samples, but trainer.max_steps=4 ends training after 60" in caplog.text
    caplog.clear()
    enough = ("task.data.min_digits=1", "task.data.curriculum=59", "trainer.max_steps=4")
    run_job(job(*enough, task="addition", directory="enough"))
    assert "includes all lengths" not in caplog.text


def test_an_unknown_metric_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match=r"must be one of val/accuracy, val/sequence_accuracy, got 'val/bpc'"):
        run_job(job(*EASY, "callbacks.criterion.metric=val/bpc"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("callbacks.criterion.at_least=1.5", "at_least must be above 0 and at most 1, got 1.5"),
        ("trainer.limit_val_batches=1", r"limit_val_batches=1 omits some\. .* task.data.num_val"),
        ("+trainer.limit_train_batches=5", r"trainer\.limit_train_batches cannot be set: .* debug=overfit"),
        ("task.data.num_val=0", "num_val"),
    ],
)
def test_impossible_criteria_are_refused(job: Job, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_job(job(*EASY, option))


def test_criterion_on_a_language_model_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match="needs an accuracy, which this task lacks"):
        run_job(job("callbacks=criterion", task="text"))


def test_checkpoints_fall_on_whole_accumulated_steps(job: Job, tmp_path: Path) -> None:
    """With two batches a step, a validation every three batches runs every four; a resumed run equals a whole one."""
    options = ("trainer.accumulate_grad_batches=2", "task.val_every=3", "stages=[fit]")
    run_job(job(*options, "trainer.max_steps=6", directory="whole"))
    run_job(job(*options, "trainer.max_steps=4", directory="parts"))
    run_job(job(*options, "trainer.max_steps=6", "ckpt_path=last", directory="parts"))
    assert [row["step"] for row in rows(tmp_path / "whole") if row["val/loss"]] == ["2", "4", "6"]
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    with pytest.raises(UserError, match=r"val_check_interval=3 must be a multiple of .*accumulate_grad_batches=2"):
        run_job(job(*options, "trainer.val_check_interval=3"))


@pytest.mark.parametrize("stages", ["stages=[fit]", "stages=[fit,test]"])
def test_changed_criterion_after_training_is_refused(job: Job, stages: str) -> None:
    options = ("callbacks=criterion", "callbacks.criterion.metric=val/accuracy", "trainer.max_steps=4", stages)
    run_job(job(*options))
    easier = "callbacks.criterion.at_least=1e-9"
    with pytest.raises(UserError, match=r"ended at step 4, but callbacks\.criterion\.at_least has changed"):
        run_job(job(*options, easier, "ckpt_path=last"))


def test_criterion_with_overfit_batches_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match=r"trainer\.overfit_batches leaves none\. .* debug=overfit"):
        run_job(job("callbacks=criterion", "trainer.overfit_batches=3"))


def test_parity_string_beyond_memory_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match=r"rows of 100,000,000 symbols or numbers.* do not fit into the memory"):
        run_job(job("task.bits=100000000", task="parity", model="grid1d"))


def test_contradicting_values_of_one_option_are_refused(job: Job) -> None:
    with pytest.raises(UserError, match=r"task\.data\.delay=3 contradicts task\.delay=2"):
        run_job(job("task.delay=2", "task.data.delay=3"))


def test_evaluation_accepts_any_number_of_digits_whatever_was_trained(job: Job, tmp_path: Path) -> None:
    trained = ("task.digits=3", "task.data.min_digits=2", "task.data.curriculum=10")
    run_job(job(*trained, task="addition"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    for digits in (1, 2, 5):
        assert "test/accuracy" in evaluate(checkpoint, "test", [f"task.digits={digits}"])
    assert evaluate(checkpoint, "test", []) == result(tmp_path / "run")["test"]
    with pytest.raises(UserError, match=r"test_digits=\[1\] has no effect on the validation, .* Give split=test"):
        evaluate(checkpoint, "val", ["task.data.test_digits=[1]"])
    with pytest.raises(UserError, match="limit_test_batches=0 leaves nothing to evaluate"):
        evaluate(checkpoint, "test", ["trainer.limit_test_batches=0"])


def test_test_stage_refuses_another_training_length(job: Job, tmp_path: Path) -> None:
    run_job(job("task.digits=3", task="addition"))
    before = result(tmp_path / "run")["test"]
    options = ("stages=[test]", "ckpt_path=last")
    with pytest.raises(UserError, match=r"task\.data\.digits=6, in the earlier run 3\nUse python -m gridlstm"):
        run_job(job(*options, "task.digits=6", task="addition"))
    assert result(tmp_path / "run")["test"] == before
    run_job(job(*options, "task.digits=3", "task.data.test_digits=[4,5]", task="addition"))
    assert "test/accuracy_5_digits" in result(tmp_path / "run")["test"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.hidden_size=10000000", r"these sizes need more memory than is available .* Use a smaller size"),
        ("task.delay=100000000000", r"15 rows of 100,000,000,\d+ symbols .* do not fit into the memory of any machine"),
        (
            "task.alphabet=10000000000000",
            r"10,000,000,000,001 distinct inputs or outputs, do not fit into the memory of any machine",
        ),
    ],
)
def test_sizes_beyond_memory_are_refused(job: Job, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_job(job(option))


def test_answers_are_judged_symbol_by_symbol_and_as_a_whole() -> None:
    """Row 0 has one wrong answer symbol, row 1 a wrong symbol outside of the answer, row 2 is right and shorter."""
    targets = torch.tensor([[0, 1, 2, 3], [0, 2, 1, 1], [0, 3, 2, 0]])
    loss_mask = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]])
    answer_mask = torch.tensor([[False, True, True, True], [False, True, True, True], [False, True, True, False]])
    written = targets.clone()
    written[0, 2], written[1, 0], written[2, 3] = 3, 3, 1
    spec = Spec(4, 4, 4, test_lengths={"short": 3, "long": 4})
    task = TagSequence(StackedLSTM(4, 3, 1), spec, torch.optim.Adam)
    batch = Batch(targets, targets, loss_mask, answer_mask, torch.ones(3, dtype=torch.bool))
    prediction = Prediction(F.one_hot(written, 4).float(), torch.ones(3, 4) * loss_mask, loss_mask.sum())
    metrics = {**task.make_metrics(), **dict(task.metrics["test_"].items())}
    task.update_metrics(metrics, batch, prediction)
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert found == pytest.approx(
        {
            "loss": 1.0,
            "accuracy": 7 / 8,
            "sequence_accuracy": 2 / 3,
            "accuracy_short": 1.0,
            "sequence_accuracy_short": 1.0,
            "accuracy_long": 5 / 6,
            "sequence_accuracy_long": 1 / 2,
        }
    )


def test_each_test_length_is_reported_separately(job: Job, tmp_path: Path) -> None:
    """The weighted mean of the scores of all lengths is the score of the whole test."""
    run_job(job("task.data.test_digits=[1,2,4]", "task.data.num_test=30", task="addition"))
    test: Any = result(tmp_path / "run")["test"]
    shares = [test[f"test/sequence_accuracy_{n}_digits"] for n in (1, 2, 4)]
    assert sum(shares) / 3 == pytest.approx(test["test/sequence_accuracy"])
    symbols = sum((n + 1) * test[f"test/accuracy_{n}_digits"] for n in (1, 2, 4))
    assert symbols / (2 + 3 + 5) == pytest.approx(test["test/accuracy"])
    assert 0 < test["test/accuracy"] < 1
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(
        UserError, match=r"task\.digits=3 does not change .*=\[1, 2, 4\]\. Give task\.data\.test_digits=\[3\]"
    ):
        evaluate(checkpoint, "test", ["task.digits=3"])
    assert "test/accuracy_3_digits" in evaluate(checkpoint, "test", ["task.digits=3", "task.data.test_digits=[3,5]"])


def test_best_checkpoint_is_the_latest_of_equal_scores(job: Job, tmp_path: Path) -> None:
    """Equal accuracies cannot rank checkpoints, but the latest one has been trained longest."""
    run_job(job("trainer.max_steps=6", "task.val_every=2", "optimizer.lr=1e-9"))
    scores = [
        row["val/accuracy"] for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open()) if row["val/accuracy"]
    ]
    assert len(scores) == 3
    assert len(set(scores)) == 1
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 6


@pytest.mark.parametrize(
    ("task", "model", "kind"),
    [
        ("parity", "grid2d", "takes a VectorModel, but model=grid2d is not one"),
        ("addition", "grid1d", "takes a SequenceModel, but model=grid1d is not one"),
        ("mnist", "grid2d", "takes an ImageModel, but model=grid2d is not one"),
    ],
)
def test_a_model_that_does_not_suit_the_task_is_refused(job: Job, task: str, model: str, kind: str) -> None:
    with pytest.raises(UserError, match=kind):
        run_job(job(task=task, model=model))
