"""Initial weights have the documented distributions, on which every measured number depends."""

import math
from collections.abc import Callable

import pytest
from torch import nn

from gridlstm import GridLSTM
from gridlstm.cell import LSTM, Cell
from gridlstm.cells import GRU, CoupledLSTM, Highway, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import InputProjection, Patches, VectorProjection, start_for_relu

D = 400


@pytest.mark.parametrize("gain", [1.0, 0.5])
@pytest.mark.parametrize("make", [LSTM, PeepholeLSTM, CoupledLSTM, LayerNormLSTM, GRU, NonLSTM, Highway])
def test_weights_of_a_cell_are_uniform_with_variance_gain_squared_over_fan_in(
    make: Callable[..., Cell], gain: float
) -> None:
    grid = Grid([Dimension("a", make(gain=gain), D // 2), Dimension("b", LSTM(), D // 2)])
    weight = grid.transforms["a"].weight
    assert isinstance(weight, nn.Parameter)
    bound = gain * math.sqrt(3 / D)
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    # At least 80,000 weights: the standard error of the deviation is a quarter of a percent.
    assert weight.std().item() == pytest.approx(gain / math.sqrt(D), rel=0.02)


def test_forget_biases_are_the_documented_constant() -> None:
    layer = GridLSTM(5, 4, 3, time=LSTM(bias=True, forget_bias=2.0))
    bias = layer.grid.transforms["time"].bias
    assert isinstance(bias, nn.Parameter)
    assert sorted(bias.flatten().tolist()) == [0.0] * 36 + [2.0] * 12


@pytest.mark.parametrize(
    ("make", "deviation"),
    [
        (lambda: InputProjection(200, 300), 1.0),
        (lambda: VectorProjection(D, 300), 1 / math.sqrt(D)),
        (lambda: Patches(1, 40, 40, 20, 300), 1 / math.sqrt(D)),
    ],
    ids=["symbols", "vectors", "patches"],
)
def test_projections_keep_unit_variance(make: Callable[[], nn.Module], deviation: float) -> None:
    weight = make().get_parameter("weight")
    assert weight.std().item() == pytest.approx(deviation, rel=0.02)  # 60,000 weights: standard error 0.3 %


def test_layers_of_relus_keep_the_variance() -> None:
    layer = nn.Linear(D, 300)
    start_for_relu([layer])
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / D), rel=0.02)
    assert not layer.bias.any()
