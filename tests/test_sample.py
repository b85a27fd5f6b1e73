"""Sampling of texts from a trained model."""

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from gridlstm.errors import UserError
from gridlstm.sample import _until, write_samples
from gridlstm.tasks import sampling
from gridlstm.tasks.sampling import next_probabilities, sample
from gridlstm.training.build import build
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]

TEXT = "Größe, größer, am größten; 大き, 小さ.\n" * 100


@pytest.fixture(params=["byte", "char", "word"])
def checkpoint(job: Job, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Train a model and delete its text; return its checkpoint."""
    text = tmp_path / "gone.txt"
    text.write_text(TEXT)
    sizes = ("task.data.stream_length=20",) if request.param == "word" else ()
    run_job(job(f"task.path={text}", f"task.data.level={request.param}", *sizes, "stages=[fit]", task="text"))
    text.unlink()
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def written(checkpoint: Path, **options: Any) -> str:
    pieces: list[str] = []
    write_samples(checkpoint, pieces.append, **options)
    return "".join(pieces)


def test_a_model_writes_without_its_text(checkpoint: Path) -> None:
    text = written(checkpoint, prime="am größten;", length=30)
    assert text.startswith("am größten;")
    assert text == written(checkpoint, prime="am größten;", length=30), "equal seeds must give equal texts"
    assert text != written(checkpoint, prime="am größten;", length=30, seed=2)
    both = written(checkpoint, prime="am", length=10, samples=2)
    first, second = (written(checkpoint, prime="am", length=10, seed=seed) for seed in (1, 2))
    assert both == f"{first[:-1]}\n\n---\n\n{second}"
    greedy = [written(checkpoint, prime="am", length=9, argmax=True, seed=seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1] == written(checkpoint, prime="am", length=9, top_k=1)
    assert written(checkpoint, length=5)


def test_sampling_stops_at_a_stop_string_after_the_prime(checkpoint: Path) -> None:
    full = written(checkpoint, prime="größer, am", length=200)
    stop = full[60:62]
    stopped = written(checkpoint, prime="größer, am", length=200, stop=stop)
    assert stopped == full[: full.index(stop, len("größer, am")) + 2] + "\n"


def test_the_stop_string_is_found_across_pieces() -> None:
    random = Random(1)
    for _ in range(500):
        text = "".join(random.choices("ab", k=random.randint(1, 30)))
        cuts = sorted(random.choices(range(len(text) + 1), k=6))
        pieces = [text[i:j] for i, j in itertools.pairwise([0, *cuts, len(text)])]
        stop = "".join(random.choices("ab", k=random.randint(1, 4)))
        prime = random.randint(0, len(text))
        end = text.find(stop, max(prime - len(stop) + 1, 0))
        assert "".join(_until(stop, prime, pieces)) == (text if end < 0 else text[: end + len(stop)])


@pytest.mark.parametrize("checkpoint", ["byte"], indirect=True)
def test_a_prime_may_end_inside_the_character_of_the_stop_string(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    half = content["TextData"]["vocabulary"].index("ö".encode()[1])
    content["state_dict"]["head.bias"][half] = 1e3  # makes this byte, the rest of ö, the next one
    torch.save(content, checkpoint)
    prime = os.fsdecode("größer, am gr".encode() + "ö".encode()[:1])
    assert written(checkpoint, prime=prime, length=30, stop="ö") == "größer, am grö\n"


@pytest.mark.parametrize("checkpoint", ["char"], indirect=True)
def test_nan_output_is_refused_instead_of_sampled(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["head.bias"][0] = math.nan
    torch.save(content, checkpoint)
    for argmax in (True, False):
        with pytest.raises(UserError, match="the network's output is not a number"):
            written(checkpoint, prime="am", argmax=argmax)


@pytest.mark.parametrize("checkpoint", ["char"], indirect=True)
def test_wrong_input_is_named(checkpoint: Path, job: Job, tmp_path: Path) -> None:
    for options, message in (
        ({"prime": "Ω"}, "'Ω' does not occur .* Remove it from the prime"),
        ({"prime": "ΩzΩy"}, "'Ω', 'z', 'y' do not occur .* Remove them from the prime"),
        ({"temperature": 0.0}, r"temperature must be above 0 and finite, got 0.0.*argmax=true"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"temperature": float("inf")}, "temperature must be above 0 and finite, got inf"),
        ({"argmax": True, "samples": 2, "prime": "am"}, "all 2 samples would be the same"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"length": 0}, "length must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"stop": ""}, "stop must not be empty"),
        ({"argmax": True, "temperature": 0.5}, "argmax=true draws nothing. Remove temperature"),
        ({"length": 10**30}, "length must be at least 1 and below"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"seed": 2**70}, "seed must be 0 or more"),
        ({"prime": "am \udce9"}, "the prime is not UTF-8"),
        ({"device": "gpu"}, "device=gpu cannot be used"),
        ({"device": "meta"}, "device=meta cannot be used"),
    ):
        with pytest.raises(UserError, match=message):
            written(checkpoint, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is not a file"):
        written(tmp_path / "nothing.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        written(checkpoint)
    run_job(job("stages=[fit]", directory="memorization"))
    with pytest.raises(UserError, match=r"has no text vocabulary.* a run of task=memorization"):
        written(tmp_path / "memorization" / "checkpoints" / "last.ckpt")


def test_probabilities_follow_temperature_top_k_and_top_p() -> None:
    p = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)

    def is_(result: torch.Tensor, *expected: float) -> None:
        torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))

    is_(next_probabilities(p.log()), 0.1, 0.4, 0.2, 0.3)
    is_(next_probabilities(p.log(), temperature=0.5), 1 / 30, 16 / 30, 4 / 30, 9 / 30)  # proportional to p^2
    is_(next_probabilities(p.log(), top_k=2), 0, 4 / 7, 0, 3 / 7)
    is_(next_probabilities(p.log(), top_p=0.65), 0, 4 / 7, 0, 3 / 7)
    is_(next_probabilities(p.log(), top_p=0.75), 0, 4 / 9, 2 / 9, 3 / 9)
    is_(next_probabilities(p.log(), top_k=2, top_p=0.5), 0, 1, 0, 0)  # 4/7 exceeds top_p
    is_(next_probabilities(p.log(), top_k=9, top_p=1.0), 0.1, 0.4, 0.2, 0.3)


@pytest.mark.parametrize("model", ["grid2d", "stacked_lstm", "gru", "transformer"])
def test_every_symbol_is_drawn_given_all_earlier_symbols(job: Job, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Carrying the state between steps, and between pieces of the prime, equals one pass over the whole text."""
    monkeypatch.setattr(sampling, "_PIECE", 2)
    task = build(job("trainer.precision=64-true", task="text", model=model)).task.double().eval()
    prime = [3, 1, 4, 1, 5]
    drawn = sample(task, prime, torch.Generator(), argmax=True)
    text = prime + [next(drawn) for _ in range(20)]
    with torch.no_grad():
        logits, _ = task(torch.tensor([text[:-1]]))
    assert logits[0, len(prime) - 1 :].argmax(-1).tolist() == text[len(prime) :]


def test_draws_follow_the_probabilities(job: Job) -> None:
    task = build(job(task="text")).task.eval()
    with torch.no_grad():
        expected = task(torch.tensor([[2]]))[0][0, -1].softmax(-1).double()
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([next(sample(task, [2], generator)) for _ in range(600)])
    counts = draws.bincount(minlength=len(expected)).double()
    chi2 = ((counts - 600 * expected) ** 2 / (600 * expected)).sum()
    # The chi-squared distribution has mean k and variance 2 k; allow six standard deviations.
    degrees = len(expected) - 1
    assert chi2 < degrees + 6 * (2 * degrees) ** 0.5
