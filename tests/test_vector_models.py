"""Networks without time, each against a NumPy transcription of its published equations."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from gridlstm.cell import LSTM
from gridlstm.cells import Highway, NonLSTM
from gridlstm.errors import UserError
from gridlstm.models.base import VectorModel
from gridlstm.models.grid1d import Grid1d

MAKE: dict[str, Callable[[], VectorModel]] = {
    "grid1d": lambda: Grid1d(5, 4, 3),
    "grid1d untied": lambda: Grid1d(5, 4, 3, tied=False),
    "feed_forward": lambda: Grid1d(5, 4, 3, depth=NonLSTM("sigmoid", bias=True), tied=False),
    "highway": lambda: Grid1d(5, 4, 3, depth=Highway(), tied=False),
}


@pytest.fixture(params=MAKE)
def model(request: pytest.FixtureRequest) -> VectorModel:
    torch.manual_seed(0)
    return MAKE[request.param]().double()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def parts(model: Grid1d) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the projection (outputs, inputs) and the weight of every layer."""
    weight = model.grid.transforms["depth"].weight.detach().numpy()  # type: ignore[union-attr]
    layers = [weight] * model.num_layers if weight.ndim == 2 else list(weight)
    return model.input.weight.detach().numpy(), layers


def random_biases(model: Grid1d) -> list[np.ndarray]:
    """Fill the biases with noise; return them by layer."""
    bias = model.grid.transforms["depth"].bias
    assert isinstance(bias, torch.Tensor)
    torch.nn.init.normal_(bias)
    return list(bias.detach().expand(model.num_layers, -1).numpy())


@pytest.mark.parametrize("tied", [True, False])
def test_1_lstm_is_its_equations(tied: bool) -> None:
    """The network starts with h_0 = I_h x and m_0 = I_m x; each layer computes equations 1 to 3 with H = h."""
    torch.manual_seed(0)
    model = Grid1d(5, 4, 3, depth=LSTM(forget_bias=0.5), tied=tied).double()
    projection, layers = parts(model)
    x = np.random.default_rng(0).normal(size=(2, 5))
    h, m = np.split(x @ projection.T, 2, axis=1)
    for W in layers:
        W_u, W_f, W_o, W_c = np.split(W, 4)
        m, o = sigmoid(h @ W_f.T + 0.5) * m + sigmoid(h @ W_u.T) * np.tanh(h @ W_c.T), sigmoid(h @ W_o.T)
        h = np.tanh(o * m)
    # Only rounding of float64 differs.
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), np.hstack([h, m]), rtol=0, atol=1e-14)


def test_output_size_and_gradients(model: VectorModel) -> None:
    y = model(torch.randn(6, 5, dtype=torch.float64))
    assert y.shape == (6, model.output_size)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_rows_in_a_batch_are_computed_independently(model: VectorModel) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x[1:2])[0], model(x)[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("x", [torch.zeros(5), torch.zeros(2, 4), torch.zeros(2, 5, dtype=torch.int64)])
def test_refuses_other_inputs(model: VectorModel, x: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"expected floats \(B, 5\)"):
        model(x)


def test_inputs_of_another_type_or_device_than_the_weights_are_refused(model: VectorModel) -> None:
    with pytest.raises(UserError, match=r"expected x of type torch\.float64 like the weights, got torch\.float32"):
        model(torch.zeros(2, 5))
    with pytest.raises(UserError, match="expected x on cpu like the weights, got meta"):
        model(torch.zeros(2, 5, dtype=torch.float64, device="meta"))


def test_invalid_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"depth must be a cell, .* got 'lstm'"):
        Grid1d(5, 4, 3, depth="lstm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"tied must be true or false, got \['depth'\]"):
        Grid1d(5, 4, 3, tied=["depth"])  # type: ignore[arg-type]


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_feed_forward_is_its_equations(activation: Literal["relu", "tanh", "sigmoid"], tied: bool) -> None:
    """The network starts with h_0 = I x; each layer computes h_l = alpha(W_l h_{l-1} + b_l)."""
    torch.manual_seed(0)
    model = Grid1d(5, 4, 3, depth=NonLSTM(activation, bias=True), tied=tied).double()
    biases = random_biases(model)
    projection, layers = parts(model)
    x = np.random.default_rng(0).normal(size=(2, 5))
    h = x @ projection.T
    for W, b in zip(layers, biases, strict=True):
        h = ACTIVATIONS[activation](h @ W.T + b)
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), h, rtol=0, atol=1e-14)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_highway_is_its_equations(activation: Literal["relu", "tanh"], tied: bool) -> None:
    """After a projection, each layer computes equation 3 of arXiv 1505.00387, y = H(x) . T(x) + x . (1 - T(x))."""
    torch.manual_seed(0)
    model = Grid1d(5, 4, 3, depth=Highway(activation), tied=tied).double()
    biases = random_biases(model)
    projection, layers = parts(model)
    x = np.random.default_rng(0).normal(size=(2, 5))
    y = x @ projection.T
    for W, b in zip(layers, biases, strict=True):
        T = sigmoid(y @ W[:4].T + b[:4])
        y = ACTIVATIONS[activation](y @ W[4:].T + b[4:]) * T + y * (1 - T)
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), y, rtol=0, atol=1e-14)


def test_highway_with_closed_gates_is_nearly_the_identity() -> None:
    model = Grid1d(5, 4, 3, depth=Highway(gate_bias=-30.0), tied=False).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), model.input(x), rtol=0, atol=1e-11)  # sigma(-30) = 1e-13
