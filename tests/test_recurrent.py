"""The vanilla network and the GRU against a NumPy transcription of their equations."""

from typing import Literal

import numpy as np
import pytest
import torch

from gridlstm.errors import UserError
from gridlstm.models.recurrent import GRU, RNN, HiddenState, Recurrent
from gridlstm.models.torch_rnn import kernel_has, run_rnn

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


@pytest.mark.parametrize(
    ("layers", "device", "dtype", "has"),
    [
        (torch.nn.LSTM, "cuda", torch.float16, True),
        (torch.nn.LSTM, "cuda", torch.bfloat16, False),
        (torch.nn.GRU, "cuda", torch.bfloat16, False),
        (torch.nn.GRU, "cpu", torch.bfloat16, True),
        (torch.nn.LSTM, "cpu", torch.float16, False),
    ],
)
def test_kernels_without_the_type_of_autocast_are_known(
    layers: type[torch.nn.RNNBase], device: str, dtype: torch.dtype, has: bool
) -> None:
    assert kernel_has(layers(2, 3), device, dtype) == has


def test_layers_whose_kernel_lacks_the_type_compute_in_float32() -> None:
    layers, x = torch.nn.LSTM(2, 3), torch.randn(4, 1, 2)
    state = (torch.randn(1, 1, 3, dtype=torch.float16), torch.randn(1, 1, 3, dtype=torch.float16))
    with torch.autocast("cpu", torch.float16):
        y, end = run_rnn(layers, x.half(), state)
    expected, expected_end = layers(x.half().float(), tuple(part.float() for part in state))
    torch.testing.assert_close((y, *end), (expected, *expected_end), rtol=0, atol=0)


def test_layers_in_float32_need_no_state_and_read_packed_rows() -> None:
    layers, rows = torch.nn.LSTM(2, 3), torch.nn.utils.rnn.pack_sequence([torch.randn(4, 2), torch.randn(3, 2)])
    with torch.autocast("cpu", torch.float16):
        found, _ = run_rnn(layers, rows.to(torch.float16))
    expected, _ = layers(rows.to(torch.float16).float())
    torch.testing.assert_close(found.data, expected.data, rtol=0, atol=0)
