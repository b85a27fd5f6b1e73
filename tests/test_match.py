"""Choosing the size of a model so that its parameters or FLOPs match those of another one."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from gridlstm.data.spec import Spec
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.models.clockwork_rnn import ClockworkRNN
from gridlstm.training.build import build
from gridlstm.training.job import run_job
from gridlstm.training.match import count_flops, count_parameters, match_size, nearest
from gridlstm.training.validate import check

SPEC = Spec(input_size=5, output_size=5, sequence_length=6)  # sizes of the toy memorization task


@pytest.fixture
def matched(job: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Return a function that composes a toy job with the size of task.network, not with TOY's model.hidden_size."""

    def make(model: str, *overrides: str, size: int = 16, layers: int = 2) -> DictConfig:
        network = [f"task.network.hidden_size={size}", f"task.network.num_layers={layers}"]
        cfg = job(*network, *overrides, model=model)
        cfg.model.hidden_size = size
        return cfg

    return make


@pytest.mark.parametrize(
    ("how", "model"),
    [
        ("parameters_to", "stacked_lstm"),
        ("parameters_to", "transformer"),
        ("parameters_to", "clockwork_rnn"),
        ("parameters_to", "min_gru"),
        ("flops_to", "transformer"),
        ("flops_to", "recurrent_highway"),
    ],
)
def test_matched_size_is_the_nearest(
    how: str, model: str, matched: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    count, unit = {"parameters_to": (count_parameters, "parameters"), "flops_to": (count_flops, "FLOPs a step")}[how]
    goal = count(matched("grid2d"), SPEC)
    cfg = matched(model, f"match.{how}=grid2d")
    with caplog.at_level(logging.INFO):
        match_size(cfg)
    size = cfg.model.hidden_size
    found = {n: count(_with_size(cfg, n), SPEC) for n in (size - 1, size, size + 1)}
    assert abs(found[size] - goal) <= min(abs(found[n] - goal) for n in found)
    assert f"hidden_size {size}: {found[size]:,} {unit} (grid2d: {goal:,})" in caplog.text


def _with_size(cfg: DictConfig, size: int) -> DictConfig:
    other = cfg.copy()
    other.model.hidden_size = size
    return other


def test_parameter_count_matches_the_trained_network(matched: Callable[..., DictConfig]) -> None:
    cfg = matched("transformer")
    assert count_parameters(cfg, SPEC) == sum(p.numel() for p in build(cfg).task.parameters())


def test_a_model_matched_to_itself_keeps_its_size(matched: Callable[..., DictConfig]) -> None:
    cfg = matched("grid2d", "match.parameters_to=grid2d", size=23)
    match_size(cfg)
    assert cfg.model.hidden_size == 23


def test_model_options_do_not_apply_to_the_reference_model(matched: Callable[..., DictConfig]) -> None:
    cfg = matched("grid2d", "model.tied=false", "match.parameters_to=grid2d", layers=4)
    match_size(cfg)
    assert cfg.model.hidden_size < 16
    assert cfg.model.tied is False


def test_a_run_records_the_size_and_is_evaluated_with_it(matched: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = matched("transformer", "match.parameters_to=grid2d")
    cfg.model.hidden_size = "${task.network.hidden_size}"
    run_job(cfg)
    recorded = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert recorded.model.hidden_size == cfg.model.hidden_size != 16
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["parameters"] == count_parameters(cfg, SPEC)
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match=r"match\.parameters_to=lstm has no effect on a trained network"):
        evaluate(checkpoint, "test", ["match.parameters_to=lstm"])
    again = evaluate(checkpoint, "test", [])
    assert again == pytest.approx(result["test"])
    cfg.trainer.max_steps, cfg.ckpt_path = 6, "last"
    run_job(cfg)  # resuming finds the same size again


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("stacked_lstm", ["match.parameters_to=gird2d"], r"parameters_to=gird2d does not exist. Choices: .*grid2d"),
        ("grid2d", ["match.parameters_to=highway"], "match.parameters_to=highway is not one. Models that fit: "),
        ("grid2d", ["match.parameters_to=rnn", "match.flops_to=rnn"], "cannot both be met. Set one of them to null"),
        ("clockwork_rnn", ["match.parameters_to=rnn", "task.network.hidden_size=2"], "smallest, hidden_size=8, has "),
        ("transformer", ["match.parameters_to=rnn", "model.num_heads=0"], "num_heads must be a whole number"),
    ],
)
def test_impossible_requests_are_refused(
    model: str, overrides: list[str], message: str, matched: Callable[..., DictConfig]
) -> None:
    with pytest.raises(UserError, match=message):
        match_size(matched(model, *overrides))


def test_experiment_options_do_not_apply_to_the_reference_model(
    matched: Callable[..., DictConfig],
) -> None:
    """The experiment sets the gain of LSTM cells, an option that a GRU lacks."""
    cfg = matched("grid2d", "experiment=ablation/initial_gain", "match.parameters_to=gru")
    match_size(cfg)
    assert count_parameters(cfg, SPEC) == pytest.approx(count_parameters(matched("gru"), SPEC), rel=0.1)


def test_a_wrong_name_is_refused_before_a_sweep(matched: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"match\.flops_to=gird2d does not exist"):
        check(matched("grid2d", "match.flops_to=gird2d"))


def test_a_model_without_hidden_size_is_refused(matched: Callable[..., DictConfig]) -> None:
    cfg = matched("stacked_lstm", "match.parameters_to=grid2d")
    OmegaConf.set_struct(cfg, False)
    del cfg.model.hidden_size
    with pytest.raises(UserError, match="model=stacked_lstm has no hidden_size"):
        match_size(cfg)


@pytest.mark.parametrize("guess", [1, 3, 50])
@pytest.mark.parametrize(
    ("goal", "size"), [(9, 3), (10, 3), (12, 3), (13, 4), (1, 1), (100, 10), (2**30, 2**15), (2**50, None)]
)
def test_nearest_size(goal: int, size: int | None, guess: int) -> None:
    assert nearest(lambda n: n * n, goal, guess) == size


def test_nearest_skips_sizes_below_the_model_minimum() -> None:
    def count(size: int) -> int:
        try:
            return sum(p.numel() for p in ClockworkRNN(5, size, periods=[1, 2, 4, 8, 16]).parameters())
        except UserError:
            return 0

    assert nearest(count, 1) == 5
    assert nearest(count, count(6)) == 6
