"""Protection of a run: interruption, divergence, early stopping, clipping, schedules, and weights of other runs."""

import json
import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tests.test_training import result, rows

from gridlstm.data.memorization import MemorizationData
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.schedules import EpochDecay
from gridlstm.tasks.sequence import SequenceTask
from gridlstm.training.build import build
from gridlstm.training.callbacks.divergence import StopOnDivergence
from gridlstm.training.callbacks.learning_curve import LearningCurve
from gridlstm.training.init_from import init_from
from gridlstm.training.job import run_job
from gridlstm.training.record import Record

pytestmark = pytest.mark.usefixtures("_ctrl_c")

Job = Callable[..., DictConfig]
STEPS = ("trainer.max_steps=10", "task.val_every=4", "trainer.log_every_n_steps=3", "stages=[fit]")


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[torch.Tensor], Any]], None]:
    """Return a function that makes the training step after a number of steps call another function with its loss.

    If the other function returns a loss, this replaces the original one.
    """
    original = SequenceTask.training_step

    def patch(step: int, function: Callable[[torch.Tensor], Any]) -> None:
        def training_step(task: SequenceTask, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = original(task, batch, batch_idx)
            changed = function(loss) if task.global_step == step else None
            return loss if changed is None else changed

        monkeypatch.setattr(SequenceTask, "training_step", training_step)

    return patch


def last(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
    return content


# The checkpoint is written before, at and after a row of the log, and one step later if a validation is due.
@pytest.mark.parametrize(
    ("step", "saved", "options"),
    [
        (1, 2, ()),
        (2, 3, ()),
        (3, 5, ()),
        (1, 3, ("trainer.accumulate_grad_batches=2",)),
        (2, 3, ("callbacks=[default,weight_averaging]",)),
        (2, 3, ("model.dropout=0.3",)),
        (2, 3, ("task.val_every=1",)),
        (1, 2, ("task.val_every=1", "trainer.accumulate_grad_batches=2")),
    ],
)
def test_interrupted_run_resumes_bit_for_bit(
    job: Job, tmp_path: Path, at_step: Any, step: int, saved: int, options: tuple[str, ...]
) -> None:
    run_job(job(*STEPS, *options, task="text", directory="whole"))
    asked = []

    def interrupt(loss: torch.Tensor) -> None:
        if not asked:
            asked.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    at_step(step, interrupt)
    with pytest.raises(SystemExit) as ended:
        run_job(job(*STEPS, *options, task="text", directory="parts"))
    assert ended.value.code == 128 + signal.SIGINT
    assert result(tmp_path / "parts")["status"] == "interrupted"
    assert last(tmp_path / "parts")["global_step"] == saved
    at_step(-1, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_job(job(*STEPS, *options, "ckpt_path=last", task="text", directory="parts"))
    assert result(tmp_path / "parts")["status"] == "completed"
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert parts["global_step"] == 10
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][name]), name
    assert all(torch.equal(a, b) for a, b in zip(whole["carried_state"], parts["carried_state"], strict=True))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_interrupted_run_saves_no_non_finite_weights(job: Job, tmp_path: Path, at_step: Any) -> None:
    """Between two log rows, the weights have not been checked."""
    steps = ("trainer.max_steps=10", "task.val_every=4", "trainer.log_every_n_steps=100", "stages=[fit]")

    def spoil(loss: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return loss * math.nan

    at_step(5, spoil)
    with pytest.raises(SystemExit):
        run_job(job(*steps, task="text"))
    assert result(tmp_path / "run")["status"] == "interrupted"
    assert last(tmp_path / "run")["global_step"] == 4


def test_resume_with_a_changed_text_is_refused(job: Job, tmp_path: Path) -> None:
    text = tmp_path / "some.txt"
    text.write_text("some text " * 200)
    options = (f"task.path={text}", "trainer.max_steps=4", "stages=[fit]")
    run_job(job(*options, task="text"))
    text.write_text("some text " * 210)
    with pytest.raises(UserError, match="has 2,100 symbols, but had 2,000 when the checkpoint was written"):
        run_job(job(*options[::2], "ckpt_path=last", "trainer.max_steps=6", task="text"))


def test_weights_are_averaged(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    original = SequenceTask.on_train_batch_end

    def record(task: SequenceTask, *arguments: Any) -> None:
        seen.append(task.head.weight.detach().clone())
        original(task, *arguments)

    monkeypatch.setattr(SequenceTask, "on_train_batch_end", record)
    run_job(job("callbacks=[default,weight_averaging]", "callbacks.weight_averaging.decay=0.3"))
    average = seen[0]
    for decay, weight in zip((2 / 11, 3 / 12, 0.3), seen[1:], strict=True):  # 0.3 is the maximum, and 4 / 13 is larger
        average = decay * average + (1 - decay) * weight
    assert len(seen) == 4
    torch.testing.assert_close(last(tmp_path / "run")["state_dict"]["head.weight"], average)
    tested = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert tested == evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", []), (
        "the average must be tested, not the last weights"
    )


def test_weight_averaging_keeps_integers_exact(job: Job, tmp_path: Path) -> None:
    """A float32 average of 3 is slightly less than 3, and would then be truncated to 2."""
    options = ("callbacks=[default,weight_averaging]", "model.periods=[1,3,9]", "model.hidden_size=6")
    run_job(job(*options, "trainer.max_steps=40", model="clockwork_rnn"))
    tested = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert tested == evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_is_recorded(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The signal may arrive while the run reads or downloads a text."""
    before = signal.signal(number, signal.SIG_DFL)  # the test runner may ignore the signal
    monkeypatch.setattr(MemorizationData, "setup", lambda *_: os.kill(os.getpid(), number))
    try:
        with pytest.raises(SystemExit) as ended:
            run_job(job(*STEPS))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number
    assert result(tmp_path / "run")["status"] == "interrupted"


def test_a_second_interrupt_ends_at_once(job: Job, tmp_path: Path, at_step: Any) -> None:
    at_step(5, lambda loss: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)] and None)
    with pytest.raises(SystemExit):
        run_job(job(*STEPS))
    assert result(tmp_path / "run")["status"] == "interrupted"
    assert last(tmp_path / "run")["global_step"] == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_save_the_current_step(job: Job, tmp_path: Path, at_step: Any, number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # the test runner may ignore the signal
    try:
        at_step(5, lambda loss: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as ended:
            run_job(job(*STEPS))
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number
    assert result(tmp_path / "run")["status"] == "interrupted"
    assert last(tmp_path / "run")["global_step"] == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_failure_is_recorded_does_not_stop_the_record(
    job: Job, tmp_path: Path, at_step: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Torchrun sends SIGTERM to rank zero as soon as another rank fails."""
    write = Record.write

    def write_signalled(record: Record) -> None:
        if record.fields["status"] == "failed":
            os.kill(os.getpid(), number)
        write(record)

    def fail(loss: torch.Tensor) -> None:
        raise RuntimeError("connection lost")

    monkeypatch.setattr(Record, "write", write_signalled)
    at_step(5, fail)
    before = signal.signal(number, signal.SIG_DFL)  # the test runner may ignore the signal
    try:
        with pytest.raises(RuntimeError, match="connection lost"):
            run_job(job(*STEPS))
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    ended = result(tmp_path / "run")
    assert (ended["status"], ended["error"]) == ("failed", "RuntimeError: connection lost")


def test_sigterm_ends_a_test(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SequenceTask, "test_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        run_job(job(*STEPS[:3]))
    assert ended.value.code == 128 + signal.SIGTERM
    assert result(tmp_path / "run")["status"] == "interrupted"


CLOCK = ("trainer.max_time=00:00:00:01", "trainer.max_steps=100000", "task.val_every=100000")
STOPPED = (
    *("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1"),
    *("callbacks.early_stopping.min_delta=1e9", "trainer.max_steps=100", "task.val_every=2"),
)


@pytest.mark.parametrize("options", [CLOCK, STOPPED, STEPS[:2]])
@pytest.mark.parametrize("where", ["the test", "the last validation"])
def test_resume_after_training_runs_only_the_test(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], where: str
) -> None:
    """Steps, a time limit or early stopping ended training.

    Otherwise a resume would refuse to continue after the time limit, and would train a stopped run further.
    """
    with monkeypatch.context() as patch:
        if where == "the test":
            patch.setattr(SequenceTask, "test_step", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        else:
            patch.setattr(LearningCurve, "on_train_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            run_job(job(*options, picture=True))
    before = result(tmp_path / "run")
    assert "test" not in before
    score = run_job(job(*options, "ckpt_path=last", picture=True))
    after = result(tmp_path / "run")
    assert (after["status"], after["score"], after["steps"]) == ("completed", score, before["steps"])
    assert after["fit_seconds"] == before["fit_seconds"]
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert after["test"] == evaluate(best, "test", [])
    longer = [option for option in options if "max_steps" not in option and "max_time" not in option]
    assert int(before["steps"]) < 10**5  # type: ignore[call-overload]
    steps = f"trainer.max_steps={before['steps'] + 2}"  # type: ignore[operator]
    run_job(job(*longer, steps, "ckpt_path=last", picture=True))
    assert result(tmp_path / "run")["steps"] == before["steps"] + 2  # type: ignore[operator]


@pytest.mark.parametrize("options", [CLOCK, STOPPED, STEPS[:2]])
def test_repeating_a_finished_training_changes_nothing(job: Job, tmp_path: Path, options: tuple[str, ...]) -> None:
    score = run_job(job(*options, "stages=[fit]"))
    before, weights = result(tmp_path / "run"), (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    assert run_job(job(*options, "stages=[fit]", "ckpt_path=last")) == score
    after = result(tmp_path / "run")
    assert after.pop("seconds") > before.pop("seconds")  # type: ignore[operator]
    assert after == before
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == weights


def test_divergence_threshold_starts_at_the_guessing_loss(job: Job, tmp_path: Path) -> None:
    """Weights of another run may start with a loss near 0, and any later loss would be a large multiple of it."""
    run_job(job(*STEPS))
    callback = StopOnDivergence(3.0)
    run = build(job(*STEPS, "callbacks.divergence=null", "callbacks.checkpoint=null", directory="other"))
    run.task.training_loss = lambda: 0.001  # type: ignore[method-assign]
    run.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    run.trainer.fit(run.task, run.data)
    assert callback.first == pytest.approx(math.log(run.data.spec.output_size))


def test_checkpoints_of_an_earlier_run_are_not_mixed_with_new_ones(job: Job, tmp_path: Path) -> None:
    run_job(job(*STEPS))
    before = last(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds the checkpoints of an earlier run\. Use ckpt_path=last to resume it"):
        run_job(job(*STEPS))
    assert last(tmp_path / "run")["global_step"] == before["global_step"]
    assert result(tmp_path / "run")["status"] == "completed"


def test_checkpoints_without_a_last_one_are_resumed_by_their_names(job: Job, tmp_path: Path) -> None:
    run_job(job(*STEPS))
    for name in ("last", "previous"):
        (tmp_path / "run" / "checkpoints" / f"{name}.ckpt").unlink()
    advice = r"Use one of them to resume it, since there is no last\.ckpt \(ckpt_path=.*/run/checkpoints/…\)"
    with pytest.raises(UserError, match=advice):
        run_job(job(*STEPS, "ckpt_path=last"))
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    run_job(job(*STEPS, "trainer.max_steps=12", f"ckpt_path={best}"))
    assert result(tmp_path / "run")["steps"] == 12


@pytest.mark.parametrize(("lost", "monitor", "mode"), [(True, "val/accuracy", "max"), (False, "val/loss", "min")])
def test_a_completed_run_without_the_best_checkpoint_keeps_its_test(
    job: Job, tmp_path: Path, lost: bool, monitor: str, mode: str
) -> None:
    run_job(job(*STEPS[:2]))
    if lost:
        (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    before = result(tmp_path / "run")
    again = (*STEPS[:2], f"task.monitor={monitor}", f"task.mode={mode}", "ckpt_path=last")
    with pytest.raises(UserError, match=f"^training ended at step 10, and .* has no best checkpoint by {monitor}"):
        run_job(job(*again))
    assert result(tmp_path / "run") == before
    run_job(job(*again, "trainer.max_steps=12"))
    assert result(tmp_path / "run")["tested"] == "best.ckpt"


def test_nan_loss_keeps_the_previous_checkpoint(job: Job, tmp_path: Path, at_step: Any) -> None:
    """The loss becomes NaN between two log rows, so only the validation detects it."""
    at_step(5, lambda loss: loss * math.nan)
    with pytest.raises(UserError, match="the validation loss became nan by step 8"):
        run_job(job(*STEPS, "trainer.log_every_n_steps=100", task="text"))
    written = result(tmp_path / "run")
    assert written["status"] == "failed"
    assert "\n" not in str(written["error"])
    for name in ("last", "best"):
        content = torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert content["global_step"] == 4
        assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_moving_average_does_not_hide_non_finite_weights(job: Job, tmp_path: Path, at_step: Any) -> None:
    """The average was last updated before the bad batch, and no log row is due before the validation."""
    at_step(6, lambda loss: loss * math.nan)
    average = ("callbacks=[default,weight_averaging]", "callbacks.weight_averaging.update_every_n_steps=5")
    with pytest.raises(UserError, match=r"the training loss became nan by step 8.* its last checkpoint was written"):
        run_job(job(*STEPS, *average, "trainer.log_every_n_steps=100", "callbacks.checkpoint=null", task="text"))
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 4


def test_an_exploding_loss_ends_the_run(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the training loss grew from [0-9.]+ to [0-9.e+]+ by step 4"):
        run_job(job(*STEPS, "optimizer=sgd", "optimizer.lr=100", "trainer.gradient_clip_val=null", task="text"))
    assert result(tmp_path / "run")["status"] == "failed"


@pytest.mark.parametrize(
    ("rows", "log_every", "val_every", "ends"),
    [(2, 1, 100, False), (3, 1, 100, True), (1, 1, 4, True), (1, 100, 4, True)],
)
def test_three_high_rows_or_bad_validation_end_the_run(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, log_every: int, val_every: int, ends: bool
) -> None:
    """The loss is high in ``rows`` rows from step 4 on, and in every validation. The row in progress counts too."""
    original, seen = SequenceTask.training_loss, []

    def loss(task: SequenceTask) -> float:
        seen.append(task.global_step)
        return original(task) * (10 if 4 <= task.global_step < 4 + rows else 1)

    monkeypatch.setattr(SequenceTask, "training_loss", loss)
    broken = SequenceTask.on_validation_epoch_start

    def spoil(task: SequenceTask) -> None:
        broken(task)
        with torch.no_grad():
            task.head.bias[0] += 100

    monkeypatch.setattr(SequenceTask, "on_validation_epoch_start", spoil)
    options = job(
        "trainer.max_steps=8", f"task.val_every={val_every}", f"trainer.log_every_n_steps={log_every}", "stages=[fit]"
    )
    if not ends:
        run_job(options)
        assert seen[-1] == 8
        return
    with pytest.raises(UserError, match=f"by step {3 + rows}: the run was ended, before it had a checkpoint"):
        run_job(options)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_divergence_factor_of_one_is_refused() -> None:
    with pytest.raises(UserError, match="factor must be null or above 1, got 1"):
        StopOnDivergence(1.0)


def test_early_stopping_ends_a_run_that_does_not_improve(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=2", "optimizer.lr=1e-30")
    with caplog.at_level(logging.INFO):
        run_job(job(*STEPS, *options, "trainer.max_steps=100", "task.val_every=2"))
    assert result(tmp_path / "run")["steps"] == 6  # the first validation is the best, two more do not improve on it
    assert result(tmp_path / "run")["status"] == "completed"
    assert "did not improve in the last 2 records" in caplog.text
    assert not logging.getLogger("lightning").handlers, (
        "otherwise Lightning and the root logger would both print each message"
    )


def test_resume_applies_a_new_patience(job: Job, tmp_path: Path) -> None:
    options = (*STEPS, "callbacks=[default,early_stopping]", "optimizer.lr=1e-30", "task.val_every=2")
    run_job(job(*options, "callbacks.early_stopping.patience=1", "trainer.max_steps=100"))
    assert result(tmp_path / "run")["steps"] == 4
    run_job(job(*options, "callbacks.early_stopping.patience=3", "trainer.max_steps=100", "ckpt_path=last"))
    assert result(tmp_path / "run")["steps"] == 8


@pytest.mark.parametrize(("algorithm", "order"), [("norm", 2), ("value", math.inf)])
def test_clipping_bounds_the_step_of_the_optimizer(job: Job, algorithm: str, order: float) -> None:
    clip = (f"trainer.gradient_clip_algorithm={algorithm}", "trainer.gradient_clip_val=0.001")
    run = build(job(*clip, "optimizer=sgd", "optimizer.lr=1", "optimizer.momentum=0", "trainer.max_steps=1"))
    before = [parameter.detach().clone() for parameter in run.task.parameters()]
    run.trainer.fit(run.task, run.data)
    step = torch.cat([(a - b).flatten() for a, b in zip(before, run.task.parameters(), strict=True)])
    # In float32, weights of about 1 are multiples of 1e-7.
    assert step.norm(order).item() == pytest.approx(0.001, rel=1e-2)


def test_an_unknown_way_of_clipping_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match="gradient_clip_algorithm"):
        build(job("trainer.gradient_clip_algorithm=valeu"))


def decaying(lr: float, steps: int, **options: Any) -> list[float]:
    """Return the learning rate of each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
    schedule = EpochDecay(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


def test_losses_that_are_too_high_are_counted_over_a_resume(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SequenceTask.training_loss
    monkeypatch.setattr(
        SequenceTask, "training_loss", lambda task: original(task) * (10 if task.global_step > 1 else 1)
    )
    options = ("trainer.log_every_n_steps=2", "task.val_every=2", "stages=[fit]")
    run_job(job(*options, "trainer.max_steps=4"))
    with pytest.raises(UserError, match=r"the training loss grew from .* by step 6"):
        run_job(job(*options, "trainer.max_steps=8", "ckpt_path=last"))


def test_extended_schedule_resumes_at_its_new_learning_rate(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("scheduler=cosine", "optimizer.lr=0.01", "stages=[fit]")
    run_job(job(*options, "trainer.max_steps=4"))
    rates: list[float] = []
    original = SequenceTask.training_step

    def note(task: SequenceTask, *arguments: Any) -> torch.Tensor:
        rates.append(task.trainer.optimizers[0].param_groups[0]["lr"])
        return original(task, *arguments)

    monkeypatch.setattr(SequenceTask, "training_step", note)
    run_job(job(*options, "trainer.max_steps=8", "ckpt_path=last"))
    shares = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(4, 8)]
    assert rates == pytest.approx([0.01 * share for share in shares], rel=1e-6)


def test_epoch_decay_equals_that_of_char_rnn() -> None:
    rates = decaying(2.0, 36, gamma=0.97, first_epoch=10, steps_per_epoch=3)
    # 30 steps are the first ten epochs.
    assert rates == pytest.approx([2.0] * 30 + [2 * 0.97] * 3 + [2 * 0.97**2] * 3, rel=1e-12)


def test_an_epoch_may_end_within_a_step() -> None:
    """Accumulated gradients make this possible."""
    rates = decaying(1.0, 8, gamma=0.5, first_epoch=1, steps_per_epoch=2.5)
    assert rates == [1.0] * 3 + [0.5] * 2 + [0.25] * 3


def test_epoch_length_comes_from_the_data(job: Job, tmp_path: Path) -> None:
    decay = ("scheduler=epoch_decay", "scheduler.gamma=0.5", "scheduler.first_epoch=1")
    run_job(job(*decay, "trainer.max_steps=40", "task.val_every=40", "trainer.log_every_n_steps=1", task="text"))
    data = build(job(task="text")).data
    symbols = len(data.parts[0])  # type: ignore[attr-defined]
    assert data.batches_per_epoch == pytest.approx(symbols / (6 * 10), rel=0.02)
    epoch = data.batches_per_epoch
    assert epoch
    table = [row for row in rows(tmp_path / "run") if row["lr"]]
    assert [float(row["lr"]) for row in table] == [0.002 * 0.5 ** (step // epoch) for step in range(1, 41)]
    with pytest.raises(UserError, match="has no epochs"):
        run_job(job(*decay, directory="other"))


def test_init_from_keeps_the_weights_of_every_known_symbol(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tmp_path / "first.txt"
    first.write_text("the cat sat; " * 200)
    run_job(job(f"task.path={first}", "stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    second = tmp_path / "second.txt"
    second.write_text("the bat ate " * 200)  # b is new, c, s and ; are gone
    old, new = build(job(f"task.path={first}", task="text")), build(job(f"task.path={second}", task="text"))
    old.task.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    fresh = new.task.head.weight.clone()
    with caplog.at_level(logging.INFO):
        init_from(new.task, new.data, checkpoint)
    assert (
        "5 of 6 symbols of the text are known to the network, 1 new ones keep their initial weights, 3 of its own are"
        in caplog.text
    )
    one, other = (run.data.corpus.vocabulary for run in (old, new))  # type: ignore[attr-defined]
    with torch.no_grad():
        a, b = (run.task(torch.from_numpy(v.encode("the tea"))[None])[0][0] for run, v in ((old, one), (new, other)))
    common = " aeht"
    torch.testing.assert_close(b[:, other.encode(common)], a[:, one.encode(common)])
    assert torch.equal(new.task.head.weight[other.encode("b")], fresh[other.encode("b")])
    options = (f"task.path={second}", f"init_from={checkpoint}", "trainer.log_every_n_steps=1")
    run_job(job(*options, task="text", directory="second"))
    run_job(job(f"task.path={second}", "trainer.log_every_n_steps=1", task="text", directory="afresh"))
    taken, afresh = (float(rows(tmp_path / name)[0]["train/loss"]) for name in ("second", "afresh"))
    assert taken != afresh
    run_job(job(*options, "ckpt_path=last", "trainer.max_steps=6", task="text", directory="second"))
    assert result(tmp_path / "second")["steps"] == 6, "a resumed run continues with its own weights"


def test_init_from_refuses_incompatible_weights(job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_job(job("stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    foreign = tmp_path / "foreign.txt"
    foreign.write_text("大小" * 1000)
    near = tmp_path / "near.txt"
    near.write_text("a new text of old letters " * 100)
    for options, message in (
        (("task.data.level=char",), "a text of level byte, but this text has level char"),
        ((f"task.path={foreign}",), "has no symbol in common with this one"),
        (("model.hidden_size=9",), "weights do not fit"),
        ((f"task.path={near}", "model.hidden_size=9"), "weights do not fit"),
        (("ckpt_path=" + str(checkpoint),), "init_from starts a new training"),
        (("stages=[test]", "ckpt_path=last"), "init_from starts a new training"),
    ):
        with pytest.raises(UserError, match=message):
            run_job(job(f"init_from={checkpoint}", *options, task="text", directory="other"))
    with pytest.raises(UserError, match="on a text instead of data without a vocabulary"):
        run_job(job(f"init_from={checkpoint}", directory="memorization"))
    caplog.clear()
    run_job(job(f"init_from={checkpoint}", "model.dropout=0.1", task="text", directory="same"))
    assert "may mean something else" not in caplog.text
    for way in ([f"init_from={checkpoint}"], [f"ckpt_path={checkpoint}", "stages=[test]"]):
        caplog.clear()
        run_job(job(*way, "model.priority=depth", task="text", directory=f"prioritized{len(way)}"))
        assert "may mean something else in this network" in caplog.text
        assert "model.priority='depth', in the earlier run None" in caplog.text
    with pytest.raises(UserError, match=r"init_from=nothing\.ckpt is not a file"):
        run_job(job("init_from=nothing.ckpt"))
