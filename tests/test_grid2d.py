"""Variants of the 2-D grid against the networks that they are equivalent to."""

import re

import numpy as np
import pytest
import torch

from gridlstm.cell import LSTM, Cell
from gridlstm.cells import GRU, NonLSTM
from gridlstm.errors import UserError
from gridlstm.grid import Transform
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.stacked_lstm import StackedLSTM

# Both sides compute in float64, with different orders of summation.
EXACT = {"rtol": 0.0, "atol": 1e-12}


def transform(model: Grid2d, name: str) -> Transform:
    found = model.grid.transforms[name]
    assert isinstance(found, Transform)
    return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cell", [LSTM(), LSTM("standard", bias=True), GRU()])
def test_identity_depth_can_equal_the_stacked_lstm(cell: Cell, tied: bool) -> None:
    """In section 3.3, this is h'_depth = V [h'_time; h_depth] with V = [I, 0]."""
    torch.manual_seed(0)
    stacked = StackedLSTM(5, 4, 3, time=cell, tied=tied).double()
    grid = Grid2d(5, 4, 3, time=cell, depth=NonLSTM(), tied=tied, priority="depth").double()
    with torch.no_grad():
        grid.input.weight.copy_(stacked.input.weight)
        # The stacked LSTM reads [x; h], the grid [h_time; h_depth].
        transform(grid, "time").weight.copy_(stacked.layers.weight.roll(4, dims=-1))
        if cell.has_bias:
            bias = transform(grid, "time").bias
            assert bias is not None
            assert stacked.layers.bias is not None
            bias.copy_(stacked.layers.bias.normal_())
        transform(grid, "depth").weight.copy_(torch.eye(4, 8))
    x = torch.randint(5, (2, 7))
    (y, state), (expected, expected_state) = grid(x), stacked(x)
    for a, b in zip([y, *state], [expected, *expected_state], strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("priority", [None, "depth"])
def test_relu_depth_equals_its_equations(priority: str | None) -> None:
    """A loop over blocks computes equations 1 to 3 along time and h' = relu(V H) along depth."""
    torch.manual_seed(0)
    model = Grid2d(5, 4, 3, depth=NonLSTM("relu"), priority=priority).double()
    W, V = (transform(model, name).weight.detach().numpy() for name in ("time", "depth"))
    x = torch.randint(5, (2, 6))
    h, m = np.zeros((2, 3, 2, 4))
    outputs = []
    for t in range(6):
        h_depth = model.input.weight.detach().numpy()[x[:, t]]
        for layer in range(3):
            H = np.hstack([h[layer], h_depth])
            z_u, z_f, z_o, z_c = np.split(H @ W.T, 4, axis=1)
            m[layer] = sigmoid(z_f + 1) * m[layer] + sigmoid(z_u) * np.tanh(z_c)
            h[layer] = np.tanh(sigmoid(z_o) * m[layer])
            h_depth = np.maximum((np.hstack([h[layer], h_depth]) if priority else H) @ V.T, 0)
        outputs.append(h_depth)
    y, state = model(x)
    np.testing.assert_allclose(y.detach().numpy(), np.stack(outputs, 1), **EXACT)
    np.testing.assert_allclose(state.h.detach().numpy(), h, **EXACT)
    np.testing.assert_allclose(state.m.detach().numpy(), m, **EXACT)


@pytest.mark.parametrize("name", ["time", "depth"])
@pytest.mark.parametrize("sweep", ["auto", "reference"])
def test_only_one_transform_can_be_tied(name: str, sweep: str) -> None:
    torch.manual_seed(0)
    tied = Grid2d(5, 4, 3, tied=[name], priority="depth", sweep=sweep).double()  # type: ignore[arg-type]
    untied = Grid2d(5, 4, 3, tied=False, priority="depth").double()
    other = {"time": "depth", "depth": "time"}[name]
    assert transform(tied, name).weight.shape == (16, 8)
    assert transform(tied, other).weight.shape == (3, 16, 8)
    untied.load_state_dict(
        {key: x.expand_as(untied.get_parameter(key)) for key, x in tied.named_parameters()}, strict=True
    )
    x = torch.randint(5, (2, 6))
    torch.testing.assert_close(tied(x)[0], untied(x)[0], **EXACT)
    for model in (tied, untied):
        model(x)[0].square().sum().backward()
    for each, summed in ((name, True), (other, False)):
        one, many = transform(tied, each).weight.grad, transform(untied, each).weight.grad
        assert one is not None
        assert many is not None
        torch.testing.assert_close(one, many.sum(0) if summed else many, **EXACT)


@pytest.mark.parametrize("tied", [True, False])
def test_time_and_depth_can_share_one_weight_set(tied: bool) -> None:
    torch.manual_seed(0)
    shared, apart = (Grid2d(5, 4, 3, tied=tied, shared=each).double() for each in (True, False))
    assert set(shared.grid.transforms) == {"time"}
    apart.input.load_state_dict(shared.input.state_dict())
    for name in ("time", "depth"):
        transform(apart, name).load_state_dict(transform(shared, "time").state_dict())
    x = torch.randint(5, (2, 6))
    torch.testing.assert_close(shared(x)[0], apart(x)[0], **EXACT)


def test_without_memory_at_ends_memory_starts_at_zero_and_is_not_read() -> None:
    torch.manual_seed(0)
    without, whole = (Grid2d(5, 4, 3, memory_at_ends=each).double() for each in (False, True))
    assert (without.output_size, whole.output_size) == (4, 8)
    whole.grid.load_state_dict(without.grid.state_dict())
    with torch.no_grad():
        whole.input.weight.zero_()[:, :4] = without.input.weight
    x = torch.randint(5, (2, 6))
    torch.testing.assert_close(without(x)[0], whole(x)[0][..., :4], **EXACT)


def test_dropout_acts_between_layers_and_on_the_output() -> None:
    torch.manual_seed(0)
    one = Grid2d(5, 40, 1, dropout=0.5).double()
    x = torch.randint(5, (2, 6))
    exact, (y, state) = one.eval()(x), one.train()(x)
    h, m = y.split(40, dim=-1)
    # With a single layer, dropout acts only on its output.
    torch.testing.assert_close(tuple(state), tuple(exact[1]), **EXACT)
    torch.testing.assert_close(m, exact[0][..., 40:], **EXACT)
    torch.testing.assert_close(h, torch.where(h == 0, 0, 2 * exact[0][..., :40]), **EXACT)
    assert 0.4 < (h == 0).double().mean() < 0.6

    two = Grid2d(5, 40, 2, dropout=0.5).double()
    exact_state, state = two.eval()(x)[1], two.train()(x)[1]
    torch.testing.assert_close(state.h[0], exact_state.h[0], **EXACT)
    assert (state.h[1] - exact_state.h[1]).abs().max() > 0.01


def test_contradicting_options_raise() -> None:
    with pytest.raises(UserError, match="expected the same cell along time and depth"):
        Grid2d(5, 4, 3, depth=LSTM(forget_bias=3), shared=True)
    with pytest.raises(UserError, match="Expected tied=true or tied=false"):
        Grid2d(5, 4, 3, tied=["depth"], shared=True)
    with pytest.raises(UserError, match="dropout must be a probability"):
        Grid2d(5, 4, 3, dropout=-0.1)


@pytest.mark.parametrize("tied", [None, 1, "depth", {"time": False}])
def test_tied_must_be_a_boolean_or_a_list(tied: object) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"tied must be true, false or a list of time and depth, got {tied!r}")
    ):
        Grid2d(5, 4, 3, tied=tied)  # type: ignore[arg-type]


def test_tied_lists_only_names() -> None:
    with pytest.raises(UserError, match=r"tied must be .* a list of time and depth, got \['time'\] in it"):
        Grid2d(5, 4, 3, tied=[["time"]])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["time", "depth"])
def test_an_invalid_cell_raises(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be a cell, .* got None"):
        Grid2d(5, 4, 3, **{name: None})  # type: ignore[arg-type]
