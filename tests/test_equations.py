"""Cells and sweeps against an independent implementation of the paper's equations in NumPy float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.models.grid2d import Grid2d
from gridlstm.scan import Block, Weights, apply_block, scan

# Both sides compute in float64, with different orders of summation.
EXACT = {"rtol": 0.0, "atol": 1e-12}


def sigma(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def lstm(H: np.ndarray, m: np.ndarray, W: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute equations 1 to 3 for column vectors; W is split as [W^u; W^f; W^o; W^c]."""
    d = m.shape[0]
    W_u, W_f, W_o, W_c = W[0:d], W[d : 2 * d], W[2 * d : 3 * d], W[3 * d : 4 * d]
    g_u = sigma(W_u @ H + b[0:d])
    g_f = sigma(W_f @ H + b[d : 2 * d])
    g_o = sigma(W_o @ H + b[2 * d : 3 * d])
    g_c = np.tanh(W_c @ H + b[3 * d : 4 * d])
    new_m = g_f * m + g_u * g_c
    return np.tanh(g_o * new_m), new_m


def random_block(
    sizes: tuple[int, ...], seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return W, b, h, m of one block as lists with one entry per dimension."""
    rng = np.random.default_rng(seed)
    D = sum(sizes)
    return (
        [rng.normal(size=(4 * d, D)) for d in sizes],
        [rng.normal(size=4 * d) for d in sizes],
        [rng.normal(size=d) for d in sizes],
        [rng.normal(size=d) for d in sizes],
    )


def run_block(
    stages: tuple[tuple[int, ...], ...], sizes: tuple[int, ...]
) -> tuple[list[HiddenMemory], tuple[list[np.ndarray], ...]]:
    parts = random_block(sizes)
    W, b, h, m = ([torch.from_numpy(x) for x in part] for part in parts)
    block = Block(tuple(LSTM() for _ in sizes), sizes, stages)
    incoming = [HiddenMemory(x[None], y[None]) for x, y in zip(h, m, strict=True)]
    return apply_block(block, [Weights(*pair) for pair in zip(W, b, strict=True)], incoming), parts


def assert_equal(got: HiddenMemory, h: np.ndarray, m: np.ndarray) -> None:
    np.testing.assert_allclose(got.h[0].numpy(), h, **EXACT)
    np.testing.assert_allclose(got.m[0].numpy(), m, **EXACT)


def test_lstm_transform_is_equations_1_to_3() -> None:
    (got,), (W, b, h, m) = run_block(((0,),), (3,))
    assert_equal(got, *lstm(h[0], m[0], W[0], b[0]))


def test_gates_are_packed_u_f_o_c() -> None:
    # With saturated gates, the paper's equations determine the result.
    d, m = 2, torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    h = torch.zeros_like(m)

    def new_memory(**z: float) -> Tensor:
        order = ("u", "f", "o", "c")
        packed = torch.cat([torch.full((1, d), z.get(gate, 0.0), dtype=torch.float64) for gate in order], dim=-1)
        return LSTM().pointwise(packed, h, m).m

    torch.testing.assert_close(new_memory(f=40.0, u=-40.0), m)  # the memory is kept
    torch.testing.assert_close(new_memory(f=-40.0, u=40.0, c=40.0), torch.ones_like(m))  # the memory is replaced by c
    torch.testing.assert_close(new_memory(f=-40.0, u=40.0, c=-40.0), -torch.ones_like(m))
    torch.testing.assert_close(new_memory(f=40.0, u=-40.0, o=-40.0), m)  # o does not touch the memory
    closed = torch.cat([torch.zeros(1, 2 * d), torch.full((1, d), -40.0), torch.zeros(1, d)], dim=-1).double()
    assert LSTM().pointwise(closed, h, m).h.abs().max() < 1e-15


def test_paper_output_is_tanh_of_the_product() -> None:
    z = torch.zeros(1, 4, dtype=torch.float64)  # every gate is 1/2, the candidate 0
    m = torch.tensor([[6.0]], dtype=torch.float64)
    h = torch.zeros_like(m)
    assert LSTM(output="paper").pointwise(z, h, m).h.item() == pytest.approx(np.tanh(0.5 * 3.0), abs=1e-15)
    assert LSTM(output="standard").pointwise(z, h, m).h.item() == pytest.approx(0.5 * np.tanh(3.0), abs=1e-15)
    with pytest.raises(UserError, match="output must be one of paper, standard"):
        LSTM(output="tanh")  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (2, 3, 4)])
def test_block_is_equation_5(sizes: tuple[int, ...]) -> None:
    N = len(sizes)
    got, (W, b, h, m) = run_block((tuple(range(N)),), sizes)
    H = np.concatenate(h)
    for n in range(N):
        assert_equal(got[n], *lstm(H, m[n], W[n], b[n]))


@pytest.mark.parametrize("last", [0, 1, 2])
def test_priority_is_equation_6(last: int) -> None:
    others = tuple(n for n in range(3) if n != last)
    got, (W, b, h, m) = run_block((others, (last,)), (2, 3, 4))
    new_h = list(h)
    for n in others:
        new_h[n], new_m = lstm(np.concatenate(h), m[n], W[n], b[n])
        assert_equal(got[n], new_h[n], new_m)
    assert_equal(got[last], *lstm(np.concatenate(new_h), m[last], W[last], b[last]))


def test_scan_connects_blocks_along_both_axes() -> None:
    T, L, d = 3, 2, 2
    W, b, _, _ = random_block((d, d))
    rng = np.random.default_rng(1)
    state_h, state_m = rng.normal(size=(2, L, d))
    input_h, input_m = rng.normal(size=(2, T, d))

    time = {(0, layer): (state_h[layer], state_m[layer]) for layer in range(L)}
    depth = {(t, 0): (input_h[t], input_m[t]) for t in range(T)}
    for t in range(T):
        for layer in range(L):
            H = np.concatenate([time[t, layer][0], depth[t, layer][0]])
            time[t + 1, layer] = lstm(H, time[t, layer][1], W[0], b[0])
            depth[t, layer + 1] = lstm(H, depth[t, layer][1], W[1], b[1])

    tensors = [torch.from_numpy(x)[:, None] for x in (state_h, state_m, input_h, input_m)]
    block = Block((LSTM(), LSTM()), (d, d), ((0, 1),))
    weights = [Weights(torch.from_numpy(W[n]), torch.from_numpy(b[n])) for n in range(2)]
    sides = [HiddenMemory(*tensors[:2]), HiddenMemory(*tensors[2:])]
    out_time, out_depth = scan(block, weights, sides, (T, L))
    for layer in range(L):
        assert_equal(HiddenMemory(out_time.h[layer], out_time.m[layer]), *time[T, layer])
    for t in range(T):
        assert_equal(HiddenMemory(out_depth.h[t], out_depth.m[t]), *depth[t, L])


def test_forget_bias_as_constant_equals_forget_bias_as_initial_value() -> None:
    results = []
    for bias in (False, True):
        torch.manual_seed(0)
        grid = Grid([Dimension("time", LSTM(bias=bias, forget_bias=2.5), 3)]).double()
        side = HiddenMemory(torch.ones(2, 3).double(), torch.ones(2, 3).double())
        results.append(grid([side], (4,))[0].h)
        assert sum(p.numel() for p in grid.parameters()) == 4 * 3 * 3 + (4 * 3 if bias else 0)
    torch.testing.assert_close(results[0], results[1], **EXACT)
    W = torch.zeros(12, 3).double()
    constant = LSTM(forget_bias=2.5).constant_bias(3, torch.zeros(0))
    assert constant is not None
    new = scan(Block((LSTM(),), (3,), ((0,),)), [Weights(W, constant.double())], [side], (1,))[0]
    np.testing.assert_allclose(new.m.numpy(), sigma(np.full((2, 3), 2.5)), **EXACT)


def test_parameter_count_of_the_character_model() -> None:
    # The paper's 16.8 M: 2 transforms x 4 gates x 1000 x 2000, an input to h and m, and an output from h and m.
    model = Grid2d(205, 1000, 6)
    head = 2 * 1000 * 205 + 205
    assert sum(p.numel() for p in model.parameters()) + head == 16_820_205


def test_gradients_of_the_reference_sweep() -> None:
    grid = Grid([Dimension("time", LSTM(bias=True), 2), Dimension("depth", LSTM(), 2)], sweep="reference").double()
    sides = [torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = grid([HiddenMemory(*tensors[:2]), HiddenMemory(*tensors[2:])], (2, 2))
        return tuple(x for side in out for x in side)

    assert torch.autograd.gradcheck(run, sides)
    assert torch.autograd.gradgradcheck(run, sides)
