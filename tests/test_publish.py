"""The published files of a network are enough to evaluate it, and give the same numbers as its checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tests.conftest import ROOT, run_python

from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.publish import _commands, publish
from gridlstm.training.checkpoint import load_content
from gridlstm.training.job import run_job

Job = Callable[..., DictConfig]


def test_evaluation_of_the_files_equals_that_of_the_checkpoint(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    files = publish(checkpoint, tmp_path / "public")
    assert [file.name for file in files] == ["model.safetensors", "config.yaml", "config_source.yaml", "README.md"]
    moved = (tmp_path / "public").rename(tmp_path / "elsewhere") / "model.safetensors"
    assert evaluate(moved, "test", []) == evaluate(checkpoint, "test", [])
    assert evaluate(moved, "test", ["task.data.num_test=7"]) != evaluate(checkpoint, "test", [])


def test_published_files_of_a_language_model_include_its_symbols(job: Job, tmp_path: Path, text_file: Path) -> None:
    run_job(job("stages=[fit]", task="text"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    published = publish(checkpoint, tmp_path / "public")[0]
    here = [f"task.path={text_file}"]
    assert evaluate(published, "test", here) == evaluate(checkpoint, "test", [])
    done = run_python("-m", "gridlstm.sample", f"ckpt={published}", "length=20", "seed=1", check=True)
    own = run_python("-m", "gridlstm.sample", f"ckpt={checkpoint}", "length=20", "seed=1", check=True)
    assert done.stdout == own.stdout


def test_published_files_contain_no_local_paths(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]", task="text"))
    files = publish(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "public")
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
        assert str(ROOT).encode() not in file.read_bytes(), file.name


def test_published_files_of_parallel_files_contain_only_their_names(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    for side in ("de", "en", "en.1"):
        (tmp_path / f"all.{side}").write_text("".join(f"line {n} in {side}\n" for n in range(40)))
    files = [f"task.{name}={tmp_path / 'all'}" for name in ("pairs", "test_pairs")]
    files += [f"task.data.source.test=[{','.join(str(tmp_path / f'all.{side}') for side in ('de', 'en', 'en.1'))}]"]
    small = ["task.data.source.num_val=8", *(f"task.data.{side}_level.size=40" for side in ("source", "target"))]
    run_job(job(*files, *small, "stages=[fit]", task="parallel", model="attention_lstm"))
    published = publish(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "public")
    assert not any(str(tmp_path).encode() in file.read_bytes() for file in published)
    stored = OmegaConf.load(published[1])
    assert stored.task.pairs == "all"
    assert stored.task.data.source.test == ["all.de", "all.en", "all.en.1"]


def test_weights_that_share_memory_are_published(job: Job, tmp_path: Path) -> None:
    """A network may use one weight under two names, such as a read-out tied to the input."""
    run_job(job("stages=[fit]"))
    content = torch.load(checkpoint := tmp_path / "run" / "checkpoints" / "best.ckpt")
    content["state_dict"]["again"] = content["state_dict"]["head.weight"]
    torch.save(content, checkpoint)
    files = publish(checkpoint, tmp_path / "public")
    weights = load_content(files[0])["state_dict"]
    assert torch.equal(weights["again"], weights["head.weight"])
    parameters = json.loads((tmp_path / "run" / "result.json").read_text())["parameters"]
    assert f"| parameters | {parameters:,} |" in files[-1].read_text(), "counted once"


def test_a_run_directory_is_neither_overwritten_nor_incomplete(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    run = tmp_path / "run"
    before = (run / "config.yaml").read_bytes()
    for out in (run, run / "public", run / ".." / "run"):
        with pytest.raises(UserError, match=r"is in the run directory of the checkpoint"):
            publish(run / "checkpoints" / "best.ckpt", out)
    assert (run / "config.yaml").read_bytes() == before
    (run / "result.json").unlink()
    with pytest.raises(UserError, match=r"has no result\.json, from which the model card takes the scores"):
        publish(run / "checkpoints" / "best.ckpt", tmp_path / "public")


def test_model_card_reports_test_score_and_commit(job: Job, tmp_path: Path) -> None:
    run_job(job())
    card = publish(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "public")[-1].read_text()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"| test/accuracy | {result['test']['test/accuracy']:.6g} |" in card
    assert f"| commit | {result['commit']} |" in card
    assert "python -m gridlstm.evaluate ckpt=model.safetensors" in card


def test_a_card_has_only_the_scores_of_its_own_weights(job: Job, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"

    def scores(name: str) -> tuple[bool, bool]:
        card = publish(checkpoints / name, tmp_path / name)[-1].read_text()
        return "best val/accuracy" in card, "test/accuracy" in card

    keep = "callbacks=[default,last_checkpoints]"
    run_job(job(keep))
    found = [scores(name) for name in ("best.ckpt", "last.ckpt", "step-4.ckpt")]
    assert found == [(True, True), (False, False), (False, False)]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["tested"] == "best.ckpt"
    run_job(job(keep, "stages=[test]", "ckpt_path=last"))
    assert [scores(name) for name in ("best.ckpt", "last.ckpt")] == [(True, False), (False, True)]


def test_a_card_counts_the_samples_of_its_own_weights(job: Job, tmp_path: Path) -> None:
    run_job(job("callbacks=[default,last_checkpoints]", "stages=[fit]"))
    for step in (2, 4):
        card = publish(tmp_path / "run" / "checkpoints" / f"step-{step}.ckpt", tmp_path / f"{step}")[-1].read_text()
        assert f"| training samples | {step * 15} |" in card


def test_files_that_were_not_published_are_kept(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"^out=.*/mine already has its own README\.md\. Give a new directory\.$"):
        publish(checkpoint, tmp_path / "mine")
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]
    for _ in range(2):
        publish(checkpoint, tmp_path / "public")


def test_published_weights_are_no_checkpoint_to_test(job: Job, tmp_path: Path) -> None:
    run_job(job("stages=[fit]"))
    weights = publish(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "public")[0]
    with pytest.raises(UserError, match=r"^ckpt_path=.*safetensors holds published weights\. .* init_from=…, or"):
        run_job(job("stages=[test]", f"ckpt_path={weights}", directory="other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("objective", "modules"),
    [
        ("gridlstm.tasks.tag_sequence.TagSequence", ["evaluate", "look what=gradients"]),
        ("gridlstm.tasks.language_model.LanguageModel", ["evaluate", "look what=gradients", "sample"]),
        ("gridlstm.tasks.classify_image.ClassifyImage", ["evaluate", "look what=image"]),
        ("gridlstm.tasks.translate.Translate", ["evaluate", "translate"]),
        ("gridlstm.tasks.predict_frames.PredictFrames", ["evaluate"]),
        ("nowhere.Mine", ["evaluate"]),
    ],
)
def test_model_card_lists_the_commands_that_suit_the_task(objective: str, modules: list[str]) -> None:
    assert [command.partition(" ckpt=")[0] for command in _commands(objective)] == modules


@pytest.mark.parametrize(("name", "problems", "least"), [("memorization-43x100", 100, 0.99), ("parity-250", 200, 0.9)])
def test_networks_of_the_repository_solve_their_task(name: str, problems: int, least: float) -> None:
    """The networks answer 99.9 and 95.7 % of 1,000 problems; a network that reads its weights wrongly is at chance."""
    scores = evaluate(
        ROOT / "docs" / "results" / "networks" / name / "model.safetensors", "test", [f"task.data.num_test={problems}"]
    )
    assert scores["test/accuracy"] >= least


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not at all")
    with pytest.raises(UserError, match="cannot be read"):
        load_content(broken)
    save_file({"x": zeros(1)}, foreign := tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"was not written by python -m gridlstm\.publish"):
        load_content(foreign)
