"""Several checkpoints are evaluated as an ensemble: the mean of their probabilities."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tests.conftest import run_python
from torch import Tensor

from gridlstm.data.spec import Spec
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.models.base import SequenceModel
from gridlstm.tasks.ensemble import Ensemble, MeanProbability, mean_log_p
from gridlstm.tasks.language_model import LanguageModel
from gridlstm.training.build import build
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]


def test_an_ensemble_predicts_the_mean_of_probabilities(job: Job, tmp_path: Path) -> None:
    """The networks have states of different kinds. Windows that carry states equal one pass over each stream."""
    tasks, checkpoints = [], []
    for model, seed in (("grid2d", 1), ("transformer", 2), ("lstm", 3)):
        config = job(
            "stages=[fit]", "trainer.precision=64-true", f"seed={seed}", model=model, task="text", directory=model
        )
        run_job(config)
        checkpoints.append(tmp_path / model / "checkpoints" / "best.ckpt")
        run = build(config)
        run.task.load_state_dict(torch.load(checkpoints[-1], weights_only=True)["state_dict"])
        tasks.append(run.task.double().eval())
    part = run.data.parts[2]  # type: ignore[attr-defined]
    text = torch.from_numpy(run.data.corpus.ids[part.start : part.stop].astype("int64"))  # type: ignore[attr-defined]
    bits = 0.0
    for start in range(0, len(text) - 1, 100):
        inputs, targets = text[start : start + 100], text[start + 1 : start + 101]
        inputs = inputs[: len(targets)]
        with torch.no_grad():
            p = sum(task(inputs[None])[0].softmax(-1) for task in tasks) / len(tasks)
        bits -= float(p[0].gather(1, targets[:, None]).log2().sum())
    first, *others = checkpoints
    found = evaluate(first, "test", [], others=others)
    assert found["test/bpc"] == pytest.approx(bits / (len(text) - 1), rel=1e-9)
    assert found["test/bpc"] < max(evaluate(path, "test", [])["test/bpc"] for path in checkpoints)
    copied = shutil.copy(first, first.with_name("copy.ckpt"))
    alone, twice = (evaluate(first, "test", [], others=others)["test/bpc"] for others in ([], [copied]))
    assert twice == pytest.approx(alone, rel=1e-12), "the weights must be loaded and used in double precision"


def test_probabilities_of_bfloat16_logits_are_averaged_in_float32() -> None:
    logits = [(4 * torch.randn(3, 205)).bfloat16() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_log_p(logits)
    expected = torch.stack([each.double().softmax(-1) for each in logits]).mean(0).log()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_ensemble_accepts_models_without_an_input_layer() -> None:
    class Last(SequenceModel):
        """Returns its one-hot inputs unchanged."""

        output_size = 3

        def initial_state(self, batch_size: int) -> tuple[()]:
            return ()

        def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, tuple[()]]:
            return torch.nn.functional.one_hot(x, 3).float(), ()

    spec = Spec(3, 3, 5)
    members = [LanguageModel(Last(), spec, torch.optim.SGD) for _ in range(2)]
    together = Ensemble(members, spec)
    assert sum(p.numel() for p in together.parameters()) == 2 * 12, "no read-out but those of the members"
    x = torch.tensor([[0, 2, 1]])
    found = MeanProbability(members)(x)[0].exp()
    torch.testing.assert_close(found, sum(member(x)[0].softmax(-1) for member in members) / 2)


def test_members_have_the_models_options_and_one_text(
    job: Job, tmp_path: Path, text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_job(job("stages=[fit]", task="text", model="transformer", directory="one"))
    turned = tmp_path / "turned.txt"
    whole = text_file.read_bytes()
    turned.write_bytes(whole[len(whole) // 2 :] + whole[: len(whole) // 2])
    run_job(job("stages=[fit]", f"task.path={turned}", task="text", model="transformer", directory="two"))
    one, two = (tmp_path / name / "checkpoints" / "best.ckpt" for name in ("one", "two"))
    short = ["model.window=2"]
    alone = evaluate(one, "test", short)["test/bpc"]
    with pytest.raises(UserError, match=r"one/checkpoints/best\.ckpt is given twice, and would count twice"):
        evaluate(one, "test", short, others=[one])
    copied = shutil.copy(one, one.with_name("copy.ckpt"))
    assert evaluate(one, "test", short, others=[copied])["test/bpc"] == pytest.approx(alone)
    assert evaluate(one, "test", [])["test/bpc"] != alone
    assert "trained on another text" not in caplog.text
    evaluate(one, "test", [], others=[two])
    assert "two/checkpoints/best.ckpt was trained on another text, or on other parts of it, than" in caplog.text


def test_a_checkpoint_of_a_gpu_is_evaluated_on_a_cpu(job: Job, tmp_path: Path) -> None:
    run_job(job())
    source = tmp_path / "run" / "config_source.yaml"
    config = OmegaConf.load(source)
    config.trainer.update({"accelerator": "gpu", "devices": -1, "strategy": "ddp"})
    OmegaConf.save(config, source)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    expected = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    if not torch.cuda.is_available():
        assert evaluate(checkpoint, "test", []) == expected
    assert evaluate(checkpoint, "test", ["trainer.accelerator=cpu"]) == expected
    with pytest.raises(UserError, match=r"hardware=cpu can be chosen only for training\. Use trainer"):
        evaluate(checkpoint, "test", ["hardware=cpu"])


def test_a_temperature_divides_the_logits(job: Job, tmp_path: Path) -> None:
    config = job("stages=[fit]", "trainer.precision=64-true")
    run_job(config)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    run = build(config)
    run.task.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    run.task.double().eval()
    nats, count = 0.0, 0.0
    for draw in run.data.val_dataloader():
        batch = run.data.on_after_batch_transfer(draw, 0)
        with torch.no_grad():
            log_p = (run.task(batch.inputs)[0] / 3).log_softmax(-1)
        nats -= float((log_p.gather(2, batch.targets[..., None])[..., 0] * batch.loss_mask).sum())
        count += float(batch.loss_mask.sum())
    assert evaluate(checkpoint, "val", [], temperature=3.0)["val/loss"] == pytest.approx(nats / count, rel=1e-9)


def test_ensemble_of_networks_without_time_is_evaluated(job: Job, tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        run_job(job("stages=[fit]", f"seed={seed}", model="grid1d", task="parity", directory=str(seed)))
        paths.append(tmp_path / str(seed) / "checkpoints" / "best.ckpt")
    done = run_python("-m", "gridlstm.evaluate", f"ckpt={paths[0]},{paths[1]}", "split=val", check=True)
    losses = [evaluate(path, "val", [])["val/loss"] for path in paths]
    assert 0 < json.loads(done.stdout)["val/loss"] <= sum(losses) / 2 + 1e-6, "by Jensen's inequality"
    assert math.isfinite(sum(losses))


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    done = run_python("-m", "gridlstm.evaluate", "ckpt=a.ckpt", "ckpt=b.ckpt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: ckpt is given more than once. Give it once, with commas between several values." in done.stderr


def test_ensemble_of_different_alphabets_is_refused(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]", task="text", directory="a"))
    other = tmp_path / "other.txt"
    other.write_text("another alphabet " * 500)
    config = job("stages=[fit]", task="text", directory="b")
    config.task.path = str(other)
    run_job(config)
    a, b = (tmp_path / name / "checkpoints" / "best.ckpt" for name in "ab")
    with pytest.raises(UserError, match="was trained on another task or text"):
        evaluate(a, "test", [], others=[b])
