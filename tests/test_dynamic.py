"""Dynamic evaluation against its equation, and on a text whose pattern changes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from gridlstm.data.base import Batch
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.tasks.dynamic import EPSILON, DynamicEvaluation
from gridlstm.training.build import build
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]


def batch(inputs: list[int], targets: list[int], reset: bool) -> Batch:
    everything = torch.ones(1, len(inputs), dtype=torch.bool)
    return Batch(torch.tensor([inputs]), torch.tensor([targets]), everything, everything, torch.tensor([reset]))


def test_two_windows_by_the_equation(job: Job) -> None:
    windows = [batch([1, 2, 3], [2, 3, 1], True), batch([1, 2, 3], [2, 3, 2], False)]
    training = [batch([3, 2, 1], [2, 1, 3], True), batch([3, 1, 1], [1, 1, 2], True)]
    rate, decay = 0.01, 0.3

    def mean_loss(task: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, state: object) -> tuple:  # type: ignore[type-arg]
        logits, state = task(inputs, state)
        return torch.nn.functional.cross_entropy(logits[0], targets[0]), state

    expected = build(job(task="text")).task.double().eval()
    names = dict(expected.named_parameters())
    size = {name: torch.zeros_like(weight) for name, weight in names.items()}
    for b in training:
        loss, _ = mean_loss(expected, b.inputs, b.targets, None)
        for (name, _), g in zip(names.items(), torch.autograd.grad(loss, list(names.values())), strict=True):
            size[name] += g**2 / 2
    size = {name: square.sqrt() for name, square in size.items()}
    mean = torch.cat([s.flatten() for s in size.values()]).mean()
    first = {name: weight.detach().clone() for name, weight in names.items()}
    total, state = 0.0, None
    for b in windows:
        loss, state = mean_loss(expected, b.inputs, b.targets, state)
        state = type(state)(*(x.detach() for x in state))
        total += 3 * loss.item()
        gradients = torch.autograd.grad(loss, list(names.values()))
        with torch.no_grad():
            for (name, w), g in zip(names.items(), gradients, strict=True):
                w += -rate * g / (size[name] + EPSILON) + (decay * size[name] / mean).clamp(max=1) * (first[name] - w)

    task = build(job(task="text")).task.double()
    task.load_state_dict(first, strict=False)
    found = DynamicEvaluation(task, training, rate, decay).evaluate(windows)
    assert found["loss"] == pytest.approx(total / 6, rel=1e-12)
    for name, weight in task.named_parameters():
        torch.testing.assert_close(weight, names[name], rtol=1e-10, atol=1e-12)


def test_a_model_learns_a_text_that_changes(job: Job, tmp_path: Path) -> None:
    text = tmp_path / "changes.txt"
    text.write_text("abcd" * 2000 + "dcba" * 300)
    splits = "task.data.splits=[8000,200,1000]"
    options = (f"task.path={text}", splits, "trainer.max_steps=100", "task.val_every=100", "optimizer.lr=0.01")
    run_job(job(*options, "stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    static = evaluate(checkpoint, "test", [])
    assert evaluate(checkpoint, "test", [], dynamic_rate=0.0) == pytest.approx(static, rel=1e-5)
    assert evaluate(checkpoint, "test", [], dynamic_rate=0.001)["test/bpc"] < 0.8 * static["test/bpc"]
    few = evaluate(checkpoint, "test", ["trainer.limit_test_batches=2"], dynamic_rate=0.0)
    assert few == pytest.approx(evaluate(checkpoint, "test", ["task.data.splits=[8000,200,21]"]), rel=1e-5)
    with pytest.raises(UserError, match=r"limit_test_batches must be a whole number of batches, .* got 0\.5"):
        evaluate(checkpoint, "test", ["trainer.limit_test_batches=0.5"], dynamic_rate=0.0)
    for given, message in (
        ({"dynamic_rate": -1.0}, "must be 0 or more"),
        ({"temperature": 0.0}, r"temperature must be at least 0\.0001, and finite, got 0"),
        ({"dynamic_rate": 0.1, "positions": tmp_path / "p"}, "cannot be combined"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(checkpoint, "test", [], **given)  # type: ignore[arg-type]


def test_a_text_of_one_symbol_teaches_nothing(job: Job, tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("a" * 2000)
    run_job(job("stages=[fit]", f"task.path={text}", "trainer.max_steps=2", task="text"))
    found = evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [], dynamic_rate=0.1, dynamic_decay=0.1)
    assert found["test/bpc"] == 0


def test_weights_that_diverge_end_the_evaluation(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match=r"the weights have diverged\. Lower dynamic_rate, now 1e\+30"):
        evaluate(checkpoint, "test", [], dynamic_rate=1e30)
    with pytest.raises(UserError, match="dynamic_rate and dynamic_decay must be 0 or more, got inf"):
        evaluate(checkpoint, "test", [], dynamic_rate=float("inf"))


def test_it_computes_in_the_precision_of_the_run(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]", "trainer.precision=bf16-mixed", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    one_row = ["task.data.batch_size=1"]
    rounded = evaluate(checkpoint, "test", one_row)["test/bpc"]
    exact = evaluate(checkpoint, "test", [*one_row, "trainer.precision=32-true"])["test/bpc"]
    found = evaluate(checkpoint, "test", [], dynamic_rate=0.0)["test/bpc"]
    assert abs(found - rounded) < 0.2 * abs(exact - rounded)
