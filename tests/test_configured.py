"""Configured constants, such as a forget bias, stay exact in a converted module and are stored with its weights."""

import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from gridlstm import GridLSTM
from gridlstm.cell import LSTM
from gridlstm.cells import CoupledLSTM, PeepholeLSTM
from gridlstm.errors import UserError
from gridlstm.evaluate import evaluate
from gridlstm.mdlstm import MDLSTM
from gridlstm.models.clockwork_rnn import ClockworkRNN
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.training.job import run_job

# Each takes a constant; the tests use values that neither float32 nor bfloat16 can represent.
MODULES: list[Callable[[float], nn.Module]] = [
    lambda b: GridLSTM(5, 4, 2, time=LSTM(forget_bias=b), depth=CoupledLSTM(forget_bias=-b)),
    lambda b: GridLSTM(5, 4, 2, tied=True, time=PeepholeLSTM(forget_bias=b), sweep="reference"),
    lambda b: StackedLSTM(5, 4, 2, time=LSTM("standard", forget_bias=b)),
    lambda b: MDLSTM(5, 4, 1, LSTM(forget_bias=b)),
    lambda b: ClockworkRNN(5, 6, 1, periods=(1, 2, round(10 * b))),
]


def made(make: Callable[[float], nn.Module], number: float = 3.7) -> nn.Module:
    torch.manual_seed(0)
    return make(number)


def output(module: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64).to(next(module.parameters()).dtype)
    out: torch.Tensor = module(x)[0]
    return out


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("assign", [False, True])
def test_a_module_built_on_the_meta_device_computes_the_same_after_loading(make: Any, assign: bool) -> None:
    expected = made(make)
    with torch.device("meta"):
        module = make(3.7)
    if not assign:
        module.to_empty(device="cpu")
    assert not list(module.buffers())
    module.load_state_dict(expected.state_dict(), assign=assign)
    assert torch.equal(output(module), output(expected))


@pytest.mark.parametrize("make", MODULES)
def test_the_constant_survives_a_change_of_precision(make: Any) -> None:
    expected, module = made(make), made(make).bfloat16().float()
    module.load_state_dict(expected.state_dict())
    assert torch.equal(output(module), output(expected))


@pytest.mark.parametrize("sweep", ["auto", "reference"])
def test_constant_bias_keeps_double_precision(sweep: Any) -> None:
    """Learned biases keep it too. In float32, 0.1 would be wrong by 1.5e-9."""
    constant = made(lambda b: GridLSTM(5, 4, 2, time=LSTM(forget_bias=b), sweep=sweep), 0.1).double()
    learned = GridLSTM(5, 4, 2, sweep="reference").double()
    learned.load_state_dict(constant.state_dict(), strict=False)
    with torch.no_grad():
        bias = learned.grid.transforms["time"].bias
        assert isinstance(bias, torch.Tensor)
        bias.zero_()
        bias.chunk(4, dim=-1)[1].fill_(0.1)
    torch.testing.assert_close(output(constant), output(learned), rtol=0, atol=1e-15)


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("strict", [False, True])
def test_weights_trained_with_another_constant_are_refused(make: Any, strict: bool) -> None:
    file = io.BytesIO()
    torch.save(made(make, 1.7).state_dict(), file)
    file.seek(0)
    with pytest.raises(UserError, match=r"trained with .*1\.?7.* Expected .*3\.?7.*, as in this network"):
        made(make).load_state_dict(torch.load(file, weights_only=True), strict=strict)


@pytest.mark.parametrize("make", MODULES)
def test_weights_without_a_recorded_constant_are_loaded(make: Any) -> None:
    module = made(make)
    state = OrderedDict(module.state_dict())
    assert not hasattr(state, "_metadata")
    assert set(state) == {name for name, _ in module.named_parameters()}
    other = make(3.7)
    other.load_state_dict(state)
    assert torch.equal(output(other), output(module))


@pytest.mark.parametrize("options", [(), ("callbacks=[default,weight_averaging]",)])
def test_checkpoint_with_another_constant_is_refused(
    job: Callable[..., DictConfig], tmp_path: Path, options: tuple[str, ...]
) -> None:
    constant = ("model.time.bias=false", "model.depth.bias=false", "stages=[fit]")
    ones = ("model.time.forget_bias=1.0", "model.depth.forget_bias=1.0")
    run_job(job(*constant, *ones, *options))
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert evaluate(checkpoint, "test", [ones[0]]) == evaluate(checkpoint, "test", [])
    for use in (
        lambda: evaluate(checkpoint, "test", ["model.time.forget_bias=2"]),
        lambda: run_job(job(*constant, f"init_from={checkpoint}", *ones[:1], directory="other")),
    ):
        with pytest.raises(UserError, match=r"trained with constant gate biases \(0\.0, 1\.0, 0\.0, 0\.0\)"):
            use()
