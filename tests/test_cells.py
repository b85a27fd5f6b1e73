"""Cells other than the LSTM against PyTorch's own modules and their published equations."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gridlstm.cell import LSTM, Cell, HiddenMemory
from gridlstm.cells import GRU, CoupledLSTM, Highway, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid, Transform
from gridlstm.models.grid2d import Grid2d

# Both sides compute in float64, with different orders of summation.
EXACT = {"rtol": 0.0, "atol": 1e-12}


def chain(cell: Cell, x: Tensor, h: Tensor) -> tuple[Transform, Tensor]:
    """Take one step along a dimension of size 3 that reads x (B, 2) from another one; return its transform and h'."""
    torch.manual_seed(0)
    passive = Dimension("input", NonLSTM(), 2)
    grid = Grid([Dimension("time", cell, 3), passive]).double()
    for parameter in grid.parameters():
        nn.init.normal_(parameter)
    B = x.shape[0]
    memory = h.new_zeros(1, B, cell.memory_size(3))
    out, _ = grid([HiddenMemory(h[None], memory), HiddenMemory(x[None], x.new_zeros(1, B, 0))], (1, 1))
    transform = grid.transforms["time"]
    assert isinstance(transform, Transform)
    return transform, out.h[0]


def test_gru_is_torch_gru() -> None:
    x, h = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    transform, new = chain(GRU(), x, h)
    assert transform.bias is not None
    cell = nn.GRUCell(2, 3).double()
    with torch.no_grad():
        cell.weight_hh.copy_(transform.weight[:, :3])
        cell.weight_ih.copy_(transform.weight[:, 3:])
        b_r, b_s, b_x, b_h = transform.bias.chunk(4)
        cell.bias_ih.copy_(torch.cat([b_r, b_s, b_x]))
        cell.bias_hh.copy_(torch.cat([torch.zeros_like(b_r), torch.zeros_like(b_s), b_h]))
    torch.testing.assert_close(new, cell(x, h), **EXACT)


def test_tanh_dimension_is_a_vanilla_rnn() -> None:
    x, h = torch.randn(4, 2).double(), torch.randn(4, 3).double()
    transform, new = chain(NonLSTM("tanh", bias=True), x, h)
    assert transform.bias is not None
    cell = nn.RNNCell(2, 3).double()
    with torch.no_grad():
        cell.weight_hh.copy_(transform.weight[:, :3])
        cell.weight_ih.copy_(transform.weight[:, 3:])
        cell.bias_ih.copy_(transform.bias)
        cell.bias_hh.zero_()
    torch.testing.assert_close(new, cell(x, h), **EXACT)


@pytest.mark.parametrize(
    ("activation", "expected"), [("identity", -2.0), ("relu", 0.0), (torch.square, 4.0), ("tanh", -0.9640275800758169)]
)
def test_non_lstm_dimension_applies_its_activation(activation: object, expected: float) -> None:
    new = NonLSTM(activation).pointwise(torch.tensor([-2.0]).double(), torch.zeros(1), torch.zeros(0))  # type: ignore[arg-type]
    assert new.h.item() == pytest.approx(expected, abs=1e-15)


def test_peepholes_see_the_old_memory_and_the_output_gate_the_new() -> None:
    z, m = torch.randn(5, 8).double(), torch.randn(5, 2).double()
    peephole = torch.randn(6).double()
    h = torch.zeros_like(m)
    torch.testing.assert_close(
        PeepholeLSTM().pointwise(z, h, m, torch.zeros_like(peephole)), LSTM().pointwise(z, h, m), **EXACT
    )
    u, f = (z[:, :2] + peephole[:2] * m).sigmoid(), (z[:, 2:4] + peephole[2:4] * m).sigmoid()
    new_m = f * m + u * z[:, 6:].tanh()
    o = (z[:, 4:6] + peephole[4:] * new_m).sigmoid()
    torch.testing.assert_close(
        PeepholeLSTM("standard").pointwise(z, h, m, peephole), HiddenMemory(o * new_m.tanh(), new_m), **EXACT
    )


@pytest.mark.parametrize("peepholes", ["ufo", "uf", "uo", "fo", "u", "f", "o"])
def test_gates_without_peepholes_equal_gates_with_zero_peepholes(
    peepholes: Literal["ufo", "uf", "uo", "fo", "u", "f", "o"],
) -> None:
    z, m = torch.randn(5, 8).double(), torch.randn(5, 2).double()
    given = torch.randn(len(peepholes), 2).double()
    all_three = torch.zeros(3, 2).double()
    all_three[["ufo".index(gate) for gate in peepholes]] = given
    cell = PeepholeLSTM(peepholes=peepholes)
    assert cell.vector_lengths(2) == {"peephole": given.numel()}
    torch.testing.assert_close(
        cell.pointwise(z, m, m, given.flatten()), PeepholeLSTM().pointwise(z, m, m, all_three.flatten()), **EXACT
    )


def test_unknown_peepholes_are_refused() -> None:
    with pytest.raises(UserError, match="peepholes must be one of ufo, uf, uo, fo, u, f, o, got 'of'"):
        PeepholeLSTM(peepholes="of")  # type: ignore[arg-type]


def test_coupled_gates_are_an_lstm_with_u_equal_to_1_minus_f() -> None:
    z_f, z_o, z_c, m = torch.randn(4, 5, 2).double()
    # sigma(-x) = 1 - sigma(x), so an LSTM with z_u = -z_f is the same cell.
    torch.testing.assert_close(
        CoupledLSTM().pointwise(torch.cat([z_f, z_o, z_c], dim=-1), m, m),
        LSTM().pointwise(torch.cat([-z_f, z_f, z_o, z_c], dim=-1), m, m),
        **EXACT,
    )
    constant = CoupledLSTM(forget_bias=2.0).constant_bias(2, torch.empty(0))
    assert constant is not None
    assert constant.tolist() == [2, 2, 0, 0, 0, 0]


def test_layer_normalization_of_gates_and_memory() -> None:
    d = 4
    z, m = torch.randn(5, 4 * d).double(), torch.randn(5, d).double()
    gain, shift = torch.randn(2, 5 * d).double()
    parts = []
    for k, x in enumerate(z.chunk(4, dim=-1)):
        centred = x - x.mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        parts.append(normal * gain[k * d : (k + 1) * d] + shift[k * d : (k + 1) * d])
    new_m = parts[1].sigmoid() * m + parts[0].sigmoid() * parts[3].tanh()
    centred = new_m - new_m.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain[4 * d :] + shift[4 * d :]
    expected = HiddenMemory((parts[2].sigmoid() * normal).tanh(), new_m)
    torch.testing.assert_close(LayerNormLSTM().pointwise(z, m, m, gain, shift), expected, **EXACT)
    with pytest.raises(UserError, match="expected bias=false"):
        LayerNormLSTM(bias=True)


@pytest.mark.parametrize(
    "cell", [GRU(), NonLSTM("relu"), Highway(), PeepholeLSTM(peepholes="fo"), CoupledLSTM(bias=True), LayerNormLSTM()]
)
@pytest.mark.parametrize("tied", [True, False])
def test_every_cell_trains_in_the_2_lstm(cell: Cell, tied: bool) -> None:
    torch.manual_seed(0)
    model = Grid2d(5, 6, 3, time=LSTM(), depth=cell, tied=tied, priority="depth")
    y, state = model(torch.randint(5, (2, 4)))
    assert y.shape == (2, 4, model.output_size)
    y, _ = model(torch.randint(5, (2, 4)), state)
    gradients = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", ["gelu", ["relu"], None])
def test_unknown_activation_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match="activation must be identity, relu, tanh, sigmoid or a function"):
        NonLSTM(name)


def closure_over(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x * weight


def counter() -> Callable[[Tensor], Tensor]:
    calls = count()
    return lambda x: x * next(calls)


@pytest.mark.parametrize("cell", [NonLSTM, Highway])
@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (nn.PReLU(), "have no weights or buffers"),
        (nn.PReLU().forward, "have no weights or buffers"),
        (nn.BatchNorm1d(4, affine=False), "have no weights or buffers"),
        (closure_over(nn.Parameter(torch.ones(()))), "not depend on weights"),
        (partial(F.batch_norm, running_mean=None, running_var=None, training=True), "compute each row independently"),
        (nn.Dropout(0.001), "return the same values each time"),
        (nn.RReLU(), "return the same values each time"),
        (counter(), "return the same values each time"),
        (nn.ReLU(inplace=True), "not overwrite its argument"),
        (nn.Sequential(nn.Tanh(), nn.ELU(inplace=True)), r"accept a tensor [\s\S]* in its backward pass"),
        (lambda x: x.clamp_(-9, 9), "not overwrite its argument"),
        (lambda x: x.sum(-1), "keep the shape and the type"),
        (torch.Tensor.double, "keep the shape and the type"),
        (nn.GLU(), "keep the shape and the type"),
        (nn.Linear, "accept a tensor of any shape"),
        (nn.Softmax(-1), None),
        (nn.Dropout().eval(), None),
    ],
)
def test_an_activation_that_a_sweep_cannot_call_is_refused(cell: Any, activation: Any, words: str | None) -> None:
    before = torch.get_rng_state()
    if words is None:
        cell(activation)
    else:
        with pytest.raises(UserError, match=f"activation must {words}"):
            cell(activation)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", [lambda: torch.device("meta"), FakeTensorMode, torch.inference_mode])
def test_an_activation_is_checked_wherever_the_network_is_made(mode: Any) -> None:
    with mode():
        NonLSTM(nn.SiLU())
        with pytest.raises(UserError, match="activation must return the same values each time"):
            NonLSTM(nn.Dropout())


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("cell", [LSTM, PeepholeLSTM, CoupledLSTM, LayerNormLSTM, GRU, NonLSTM, Highway])
def test_gain_must_be_positive_and_finite(cell: type[LSTM], gain: float) -> None:
    with pytest.raises(UserError, match=f"gain must be above 0 and finite, got {gain}"):
        cell(gain=gain)


def test_a_negative_epsilon_of_layer_normalization_is_refused() -> None:
    with pytest.raises(UserError, match=r"epsilon must be above 0 and finite, got -1\.0"):
        LayerNormLSTM(epsilon=-1.0)
