"""Loss by position after the state's reset, and perplexity."""

import csv
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from gridlstm.data.text import TextData
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.training.build import build
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]


@pytest.mark.parametrize("split", ["val", "test", "all"])
def test_loss_by_position_equals_that_of_single_streams(
    job: Job, tmp_path: Path, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = job("stages=[fit]", "trainer.precision=64-true", task="text")
    run_job(config)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with caplog.at_level(logging.INFO):
        found = evaluate(checkpoint, split, [], tmp_path / "by" / "position")
    with (tmp_path / "by" / "position.csv").open() as file:
        table = list(csv.DictReader(file))
    run = build(config)
    run.task.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    task = run.task.double().eval()
    parts = run.data.parts  # type: ignore[attr-defined]
    part = {"val": parts[1], "test": parts[2], "all": range(parts[2].stop)}[split]
    text = torch.from_numpy(run.data.corpus.ids[part.start : part.stop].astype("int64"))  # type: ignore[attr-defined]
    sums, counts = torch.zeros(100, dtype=torch.float64), torch.zeros(100)
    for start in range(0, len(text) - 1, 100):
        inputs, targets = text[start : start + 100], text[start + 1 : start + 101]
        inputs = inputs[: len(targets)]
        with torch.no_grad():
            nats = torch.nn.functional.cross_entropy(task(inputs[None])[0][0], targets, reduction="none")
        sums[: len(nats)] += nats
        counts[: len(nats)] += 1
    assert [int(row["position"]) for row in table] == list(range(1, 101))
    assert [int(row["symbols"]) for row in table] == counts.tolist()
    # Both are float64, and the CSV file holds all digits.
    assert [float(row["nats"]) for row in table] == pytest.approx((sums / counts).tolist(), rel=1e-9)
    mean = float(sums.sum() / counts.sum())
    assert found[f"{split}/loss"] == pytest.approx(mean, rel=1e-6)
    assert found[f"{split}/perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)
    assert found[f"{split}/bpc"] == pytest.approx(mean / math.log(2), rel=1e-6)
    with Image.open(tmp_path / "by" / "position.png") as picture:
        assert picture.width > 500
        assert picture.getextrema() != ((255, 255),) * 4, "the picture is blank"
    assert "loss by position: " in caplog.text


def test_a_text_too_short_for_splits_can_be_evaluated_whole(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]", "task.data.splits=[2000,200,200]", task="text"))
    known = build(job(task="text")).data.corpus  # type: ignore[attr-defined]
    text = bytes(known.vocabulary.symbols[i] for i in known.ids[:3])
    (tmp_path / "short.txt").write_bytes(text)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    found = evaluate(checkpoint, "all", [f"task.path={tmp_path / 'short.txt'}"])
    assert set(found) == {"all/loss", "all/bpc", "all/perplexity"}
    (tmp_path / "one.txt").write_bytes(text[:1])
    with pytest.raises(UserError, match=r"has 1 symbol\. Testing needs at least 2"):
        evaluate(checkpoint, "all", [f"task.path={tmp_path / 'one.txt'}"])
    with pytest.raises(UserError, match="dynamic evaluation reads the training split first"):
        evaluate(checkpoint, "all", [], dynamic_rate=0.1)
    with pytest.raises(UserError, match=r"temperature must be at least 0\.0001, and finite, got 1e-45"):
        evaluate(checkpoint, "test", [], temperature=1e-45)
    with pytest.raises(UserError, match=r"temperature must be at least 0\.0001, and finite, got inf"):
        evaluate(checkpoint, "test", [], temperature=math.inf)
    with pytest.raises(UserError, match=r"positions=\. is not a file name"):
        evaluate(checkpoint, "test", [], Path())
    with pytest.raises(UserError, match="cannot be combined"):
        evaluate(checkpoint, "test", [], tmp_path / "new" / "p", dynamic_rate=0.1)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"limit_test_batches must be a whole number of batches"):
        evaluate(checkpoint, "test", ["trainer.limit_test_batches=0.5"])


def test_positions_that_cannot_be_written_are_refused_before_the_evaluation(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(job("stages=[fit]", task="text"))
    monkeypatch.setattr(TextData, "test_dataloader", lambda _: pytest.fail("the evaluation has begun"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^the directory of positions=.*/file cannot be written: .*/file is a file\."):
        evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [], tmp_path / "file" / "stem")


def test_positions_are_refused_except_for_language_models(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    with pytest.raises(UserError, match="positions and dynamic_rate are for language models"):
        evaluate(tmp_path / "run" / "checkpoints" / "best.ckpt", "test", [], tmp_path / "positions")
