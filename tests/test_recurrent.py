"""The vanilla network and the GRU against a NumPy transcription of their equations."""

from typing import Literal

import numpy as np
import pytest
import torch

from gridlstm.errors import UserError
from gridlstm.models.recurrent import GRU, RNN, HiddenState, Recurrent

EXACT = {"rtol": 0.0, "atol": 1e-13}  # float64 with different orders of summation
L, d, B, T = 2, 4, 3, 6


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def problem(model: Recurrent) -> tuple[torch.Tensor, HiddenState, list[list[np.ndarray]]]:
    """Return symbols, an initial state, and W_x, W_h, b_x, b_h of each layer."""
    generator = torch.Generator().manual_seed(1)
    x, h = torch.randint(5, (B, T), generator=generator), torch.randn(L, B, d, generator=generator).double()
    names = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
    weights = [[model.layers.get_parameter(f"{name}{k}").detach().numpy() for name in names] for k in range(L)]
    return x, HiddenState(h), weights


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rnn_is_its_equation(activation: Literal["tanh", "relu"]) -> None:
    torch.manual_seed(0)
    model = RNN(5, d, L, activation).double()
    x, state, weights = problem(model)
    alpha = np.tanh if activation == "tanh" else lambda z: np.maximum(z, 0)
    h = state.h.numpy().copy()
    outputs = []
    for t in range(T):
        below = model.input.weight.detach().numpy()[x[:, t]]
        for k, (W, V, b, c) in enumerate(weights):
            below = h[k] = alpha(below @ W.T + b + h[k] @ V.T + c)
        outputs.append(below)
    y, end = model(x, state)
    np.testing.assert_allclose(y.detach().numpy(), np.stack(outputs, 1), **EXACT)
    np.testing.assert_allclose(end.h.detach().numpy(), h, **EXACT)


def test_gru_is_its_equations() -> None:
    torch.manual_seed(0)
    model = GRU(5, d, L).double()
    x, state, weights = problem(model)
    h = state.h.numpy().copy()
    outputs = []
    for t in range(T):
        below = model.input.weight.detach().numpy()[x[:, t]]
        for k, (W, V, b, c) in enumerate(weights):
            x_r, x_s, x_n = np.split(below @ W.T + b, 3, axis=1)
            h_r, h_s, h_n = np.split(h[k] @ V.T + c, 3, axis=1)
            s, n = sigmoid(x_s + h_s), np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
            below = h[k] = (1 - s) * n + s * h[k]
        outputs.append(below)
    y, end = model(x, state)
    np.testing.assert_allclose(y.detach().numpy(), np.stack(outputs, 1), **EXACT)
    np.testing.assert_allclose(end.h.detach().numpy(), h, **EXACT)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(UserError, match="activation must be tanh or relu, got 'gelu'"):
        RNN(5, 4, 3, "gelu")  # type: ignore[arg-type]
