"""Sequence models of other papers against literal NumPy transcriptions of their equations, or torch's modules."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gridlstm.errors import UserError
from gridlstm.models import transformer
from gridlstm.models.base import SequenceModel
from gridlstm.models.clockwork_rnn import ClockworkRNN
from gridlstm.models.depth_gated_lstm import DepthGatedLSTM
from gridlstm.models.gated_feedback_lstm import GatedFeedbackLSTM
from gridlstm.models.min_gru import MinGRU, linear_scan
from gridlstm.models.recurrent_highway import RecurrentHighway
from gridlstm.models.transformer import Transformer

MAKE: dict[str, Callable[[], SequenceModel]] = {
    "depth_gated_lstm": lambda: DepthGatedLSTM(5, 4, 3),
    "gated_feedback_lstm": lambda: GatedFeedbackLSTM(5, 4, 3),
    "clockwork_rnn": lambda: ClockworkRNN(5, 4, 2, periods=[1, 2, 4]),
    "recurrent_highway": lambda: RecurrentHighway(5, 4, 3),
    "transformer": lambda: Transformer(5, 6, 3, num_heads=2, window=7),
    "min_gru": lambda: MinGRU(5, 4, 3),
}

T, B, d, L = 7, 2, 4, 3
Array = np.ndarray[Any, Any]


def made(make: Callable[[], SequenceModel]) -> tuple[dict[str, Array], Array, Array]:
    """Return random parameters by name, a random input projected to (T, B, d), and the output of the model."""
    torch.manual_seed(0)
    model = make().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(B, T, 5, dtype=torch.float64)
    y = model(x)[0].detach().transpose(0, 1).numpy()
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    return p, x.transpose(0, 1).numpy() @ p["input.weight"], y


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def assert_equal(y: Array, expected: Array) -> None:
    # Both sides compute in float64, with different orders of summation.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def test_depth_gated_lstm_is_its_equations() -> None:
    """Section 3 of arXiv 1508.03790 calls the gates i, f, o, d and the memory c."""
    p, x, y = made(lambda: DepthGatedLSTM(5, d, L))
    h, c = np.zeros((L, B, d)), np.zeros((L, B, d))
    outputs = []
    for x_t in x:
        below, c_below = x_t, x_t @ p["layers.0.memory_below.weight"].T
        for n in range(L):
            W_xi, W_xf, W_xo, W_xc, W_xd = np.split(p[f"layers.{n}.from_below.weight"], 5)
            b_i, b_f, b_o, b_c, b_d = np.split(p[f"layers.{n}.from_below.bias"], 5)
            W_hi, W_hf, W_ho, W_hc = np.split(p[f"layers.{n}.from_before.weight"], 4)
            w_ci, w_cf, w_cd, w_co = p[f"layers.{n}.peepholes"]
            i = sigmoid(below @ W_xi.T + h[n] @ W_hi.T + w_ci * c[n] + b_i)
            f = sigmoid(below @ W_xf.T + h[n] @ W_hf.T + w_cf * c[n] + b_f)
            from_lower = 0 if n == 0 else p[f"layers.{n}.depth_peephole"] * c_below
            depth = sigmoid(b_d + below @ W_xd.T + w_cd * c[n] + from_lower)
            c[n] = depth * c_below + f * c[n] + i * np.tanh(below @ W_xc.T + h[n] @ W_hc.T + b_c)
            o = sigmoid(below @ W_xo.T + h[n] @ W_ho.T + w_co * c[n] + b_o)
            h[n] = o * np.tanh(c[n])
            below, c_below = h[n], c[n]
        outputs.append(h[-1].copy())
    assert_equal(y, np.stack(outputs))


def test_gated_feedback_lstm_is_its_equations() -> None:
    """The equations are in section 3 of arXiv 1502.02367; the reference computes gate by gate, layer by layer."""
    p, x, y = made(lambda: GatedFeedbackLSTM(5, d, L))
    h, c = np.zeros((L, B, d)), np.zeros((L, B, d))
    outputs = []
    for x_t in x:
        before = h.copy()
        h_star = np.concatenate(list(before), axis=-1)
        below = x_t
        for j in range(L):
            W_i, W_f, W_o, W_c, w_g = np.split(p["from_below"][j], [d, 2 * d, 3 * d, 4 * d])
            b_i, b_f, b_o, b_c, b_g = np.split(p["bias"][j], [d, 2 * d, 3 * d, 4 * d])
            U_i, U_f, U_o = np.split(p["from_before"][j], 3)
            fed_back = np.zeros((B, d))
            for i in range(L):
                g = sigmoid(below @ w_g[i] + h_star @ p["reset"][j, i] + b_g[i])  # (B,), one number per row
                fed_back += g[:, None] * (before[i] @ p["feedback"][i, j * d : (j + 1) * d].T)
            f_t = sigmoid(below @ W_f.T + before[j] @ U_f.T + b_f)
            i_t = sigmoid(below @ W_i.T + before[j] @ U_i.T + b_i)
            o_t = sigmoid(below @ W_o.T + before[j] @ U_o.T + b_o)
            c[j] = f_t * c[j] + i_t * np.tanh(below @ W_c.T + fed_back + b_c)
            h[j] = o_t * np.tanh(c[j])
            below = h[j]
        outputs.append(h[-1].copy())
    assert_equal(y, np.stack(outputs))


def test_gated_feedback_of_one_layer_with_open_gates_is_torchs_lstm() -> None:
    torch.manual_seed(0)
    model = GatedFeedbackLSTM(5, d, 1).double()
    reference = nn.LSTM(d, d, batch_first=True).double()
    with torch.no_grad():
        model.bias[0, 4 * d :] = 50.0  # g = 1 to the last bit

        def reordered(u_f_o_c: torch.Tensor) -> torch.Tensor:  # torch's order is i, f, g, o
            u, f, o, c = u_f_o_c.chunk(4)
            return torch.cat([u, f, c, o])

        reference.weight_ih_l0.copy_(reordered(model.from_below[0, : 4 * d]))
        reference.weight_hh_l0.copy_(reordered(torch.cat([model.from_before[0], model.feedback[0]])))
        reference.bias_ih_l0.copy_(reordered(model.bias[0, : 4 * d]))
        reference.bias_hh_l0.zero_()
    x = torch.randint(5, (B, T))
    torch.testing.assert_close(model(x)[0], reference(model.input(x))[0], rtol=0, atol=1e-14)


PERIODS = [1, 2, 5]


def test_clockwork_rnn_is_its_equations() -> None:
    """The equations are in section 3 of arXiv 1402.3511. Modules of 3, 2 and 2 units have the periods 1, 2 and 5."""
    p, x, y = made(lambda: ClockworkRNN(5, 7, 2, periods=PERIODS))
    starts = [0, 3, 5, 7]
    h = np.zeros((2, B, 7))
    outputs = []
    for t, below in enumerate(x):
        for n in range(2):
            W_I, b = p[f"layers.{n}.from_below.weight"], p[f"layers.{n}.from_below.bias"]
            before = h[n].copy()
            for i in range(3):
                if t % PERIODS[i] == 0:
                    rows = slice(starts[i], starts[i + 1])
                    recurrent = before[:, starts[i] :] @ p[f"layers.{n}.from_before.{i}"].T
                    h[n][:, rows] = np.tanh(recurrent + below @ W_I[rows].T + b[rows])
            below = h[n]
        outputs.append(h[-1].copy())
    assert_equal(y, np.stack(outputs))


def test_clockwork_rnn_of_period_one_is_torchs_rnn() -> None:
    torch.manual_seed(0)
    model = ClockworkRNN(5, d, 1, periods=[1]).double()
    reference = nn.RNN(d, d, batch_first=True).double()
    layer: Any = model.layers[0]
    with torch.no_grad():
        reference.weight_ih_l0.copy_(layer.from_below.weight)
        reference.weight_hh_l0.copy_(layer.from_before[0])
        reference.bias_ih_l0.copy_(layer.from_below.bias)
        reference.bias_hh_l0.zero_()
    x = torch.randint(5, (B, T))
    torch.testing.assert_close(model(x)[0], reference(model.input(x))[0], rtol=0, atol=1e-14)


def test_rows_of_a_clockwork_rnn_may_be_reset_separately() -> None:
    model = ClockworkRNN(5, 8, periods=[1, 2, 4]).double()
    x = torch.randint(5, (1, 9))
    _, old = model(x[:, :3])
    mixed = type(old)(*(torch.cat([a, b], dim=1) for a, b in zip(old, model.initial_state(1), strict=True)))
    y, _ = model(torch.cat([x[:, 3:], x[:, :6]]), mixed)
    whole, _ = model(x)
    torch.testing.assert_close(y[0], whole[0, 3:], rtol=0, atol=1e-14)
    torch.testing.assert_close(y[1], whole[0, :6], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("size", "periods", "message"),
    [
        (2, [1, 2, 4], "hidden_size of at least 3"),
        (4, [], "periods must be"),
        (4, [2, 1], "periods must be"),
        (4, [1, 2.5], "periods must be"),
    ],
)
def test_clockwork_rnn_refuses_impossible_modules(size: int, periods: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClockworkRNN(5, size, periods=periods)


def test_recurrent_highway_is_its_equations() -> None:
    """Equations 6 to 8 of arXiv 1607.03474 with c = 1 - t."""
    p, x, y = made(lambda: RecurrentHighway(5, d, L))
    W_H, W_T = np.split(p["from_below.weight"], 2)
    s = np.zeros((B, d))
    outputs = []
    for x_t in x:
        for n in range(L):
            R_H, R_T = np.split(p["weight"][n], 2)
            b_H, b_T = np.split(p["bias"][n], 2)
            first = 1.0 if n == 0 else 0.0
            h = np.tanh(first * (x_t @ W_H.T) + s @ R_H.T + b_H)
            t = sigmoid(first * (x_t @ W_T.T) + s @ R_T.T + b_T)
            s = h * t + s * (1 - t)
        outputs.append(s)
    assert_equal(y, np.stack(outputs))


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def feed_forward(y: Array, p: dict[str, Array], block: str) -> Array:
    """Compute the second half of a residual block, with gelu from the error function."""
    a = layer_norm(y, p[f"{block}.feed_forward_norm.weight"], p[f"{block}.feed_forward_norm.bias"])
    a = a @ p[f"{block}.feed_forward.0.weight"].T + p[f"{block}.feed_forward.0.bias"]
    a = a * (1 + torch.erf(torch.from_numpy(a) / 2**0.5).numpy()) / 2
    return y + a @ p[f"{block}.feed_forward.2.weight"].T + p[f"{block}.feed_forward.2.bias"]


def rotated(x: Array, t: int) -> Array:
    """Compute equation 34 of arXiv 2104.09864: the pairs (i, i + e/2) are complex numbers, rotated by their angles."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * t * 10000.0 ** (-2 * np.arange(half) / len(x)))
    return np.concatenate([turned.real, turned.imag])


def test_transformer_is_its_equations() -> None:
    """A loop computes each query over its window, for 6 units and 2 heads of length 4."""
    window, n, e = 4, 2, 4
    p, y, out = made(lambda: Transformer(5, 6, 2, num_heads=n, window=window))
    for block in ("blocks.0", "blocks.1"):
        a = layer_norm(y, p[f"{block}.mixer_norm.weight"], p[f"{block}.mixer_norm.bias"])
        qkv = (a @ p[f"{block}.mixer.qkv.weight"].T + p[f"{block}.mixer.qkv.bias"]).reshape(T, B, 3, n, e)
        mixed = np.zeros((T, B, n, e))
        for t in range(T):
            steps = range(max(0, t - window + 1), t + 1)
            for b in range(B):
                for head in range(n):
                    q, k, v = np.moveaxis(qkv[:, b, :, head], 1, 0)
                    scores = np.array([rotated(q[t], t) @ rotated(k[s], s) / np.sqrt(e) for s in steps])
                    weights = np.exp(scores) / np.exp(scores).sum()
                    mixed[t, b, head] = weights @ v[list(steps)]
        y = y + mixed.reshape(T, B, n * e) @ p[f"{block}.mixer.out.weight"].T + p[f"{block}.mixer.out.bias"]
        y = feed_forward(y, p, block)
    assert_equal(out, layer_norm(y, p["norm.weight"], p["norm.bias"]))


def test_transformer_without_rotation_is_torchs_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "_rotate", lambda x, cosine, sine: x)
    torch.manual_seed(0)
    model = Transformer(5, 8, 2, num_heads=2, window=T).double()
    layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    reference = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False).double()
    names = {
        "mixer.qkv.weight": "self_attn.in_proj_weight", "mixer.qkv.bias": "self_attn.in_proj_bias",
        "mixer.out": "self_attn.out_proj", "feed_forward.0": "linear1", "feed_forward.2": "linear2",
        "mixer_norm": "norm1", "feed_forward_norm": "norm2", "blocks": "layers",
    }  # fmt: skip
    renamed = {}
    for name, value in model.state_dict().items():
        for ours, torchs in names.items():
            name = name.replace(ours, torchs)
        renamed[name] = value
    del renamed["input.weight"]
    reference.load_state_dict(renamed)
    x = torch.randint(5, (B, T))
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    torch.testing.assert_close(model(x)[0], reference(model.input(x), mask=mask), rtol=0, atol=1e-13)


def test_transformer_streams_far_beyond_its_window() -> None:
    """One step at a time, with rows at different positions in one batch, equals each row's whole sequence."""
    torch.manual_seed(0)
    model = Transformer(5, 6, 2, num_heads=2, window=3).double()
    x = torch.randint(5, (2, 12))
    whole, _ = model(x)
    _, older = model(x[:1, :5])
    state = type(older)(*(torch.cat([a, b], dim=1) for a, b in zip(older, model.initial_state(1), strict=True)))
    for t in range(7):
        y, state = model(torch.stack([x[0, 5 + t], x[1, t]])[:, None], state)
        torch.testing.assert_close(y[:, 0], torch.stack([whole[0, 5 + t], whole[1, t]]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", [{"num_heads": 0}, {"num_heads": 2.0}, {"window": 2.5}])
def test_transformer_refuses_invalid_heads_and_window(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"{name} must be a whole number of at least 1, got {options[name]}"):
        Transformer(5, 4, 1, **options)


def test_min_gru_is_its_equations() -> None:
    """Section 3.1 of arXiv 2410.01201, with g of its appendix B, is computed step by step inside residual blocks."""
    p, y, out = made(lambda: MinGRU(5, d, 2))
    for block in ("blocks.0", "blocks.1"):
        a = layer_norm(y, p[f"{block}.mixer_norm.weight"], p[f"{block}.mixer_norm.bias"])
        W_z, W_h = np.split(p[f"{block}.mixer.gate_and_candidate.weight"], 2)
        b_z, b_h = np.split(p[f"{block}.mixer.gate_and_candidate.bias"], 2)
        h = np.full((B, d), 0.5)
        mixed = []
        for x_t in a:
            z, candidate = sigmoid(x_t @ W_z.T + b_z), x_t @ W_h.T + b_h
            h = (1 - z) * h + z * np.where(candidate >= 0, candidate + 0.5, sigmoid(candidate))
            mixed.append(h)
        y = feed_forward(y + np.stack(mixed), p, block)
    assert_equal(out, layer_norm(y, p["norm.weight"], p["norm.bias"]))


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_scan_equals_the_loop_in_value_and_gradient(steps: int) -> None:
    torch.manual_seed(0)
    a = torch.rand(2, steps, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, steps, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    expected, last = [], h
    for t in range(steps):
        last = a[:, t] * last + b[:, t]
        expected.append(last)
    y, reference = linear_scan(a, b, h), torch.stack(expected, dim=1)
    torch.testing.assert_close(y, reference, rtol=0, atol=1e-14)
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weights).sum(), [a, b, h]),
        torch.autograd.grad((reference * weights).sum(), [a, b, h]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    assert torch.autograd.gradgradcheck(linear_scan, (a, b, h))


def test_scan_stays_exact_over_thousands_of_closed_gates() -> None:
    """A scan that divides by the running product, 0.01 ** 5000, would overflow."""
    a = torch.full((1, 5000, 1), 0.01)
    y = linear_scan(a, torch.ones(1, 5000, 1), torch.zeros(1, 1))
    torch.testing.assert_close(y[0, -1], torch.tensor([1 / 0.99]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MAKE)
def test_networks_built_on_the_meta_device_compute_the_same_after_loading(name: str) -> None:
    """Buffers that are not in the state_dict, such as periods, are filled by ``reset_parameters``."""
    expected = MAKE[name]()
    with torch.device("meta"):
        model = MAKE[name]()
    model = model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(7)  # uninitialized memory may hold anything
    model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    model.load_state_dict(expected.state_dict())
    x = torch.randint(5, (2, 9))
    assert torch.equal(model(x)[0], expected(x)[0])


@pytest.mark.parametrize("name", MAKE)
def test_autocast_lowers_products_but_keeps_state_dtype(name: str) -> None:
    torch.manual_seed(0)
    model, x = MAKE[name](), torch.randint(5, (2, 9))
    exact, _ = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model(x[:, :4])
        y, state = model(x[:, 4:], state)
    assert all(a.dtype == b.dtype for a, b in zip(state, model.initial_state(2), strict=True))
    # bfloat16 has 8 bits of mantissa, and rounding errors accumulate over a few layers and steps.
    torch.testing.assert_close(y.float(), exact[:, 4:], rtol=0, atol=0.1)
    assert not torch.equal(y.float(), exact[:, 4:])
    y.float().square().sum().backward()
