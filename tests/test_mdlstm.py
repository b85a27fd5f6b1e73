"""The multidimensional LSTM against a NumPy transcription of its equations, and the growth of its memory."""

from collections.abc import Callable
from itertools import product
from math import comb
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import PeepholeLSTM
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.mdlstm import MDLSTM, md_block, md_scan, md_wavefront
from gridlstm.models.mdlstm2d import MDLSTM2d
from gridlstm.models.stacked_lstm import StackedLSTM

# Both sides compute in float64, with different orders of summation.
EXACT = {"rtol": 0.0, "atol": 1e-12}
B, d = 2, 3


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def random_sides(extents: tuple[int, ...]) -> list[HiddenMemory]:
    shapes = [(*extents[:n], *extents[n + 1 :], B, d) for n in range(len(extents))]
    return [HiddenMemory(*(torch.randn(shape).double() for _ in range(2))) for shape in shapes]


@pytest.mark.parametrize("extents", [(4,), (3, 2), (1, 4), (2, 3, 2)])
@pytest.mark.parametrize("output", ["paper", "standard"])
@pytest.mark.parametrize("sweep", ["auto", "reference"])
def test_it_is_its_equations(
    extents: tuple[int, ...], output: Literal["paper", "standard"], sweep: Literal["auto", "reference"]
) -> None:
    """Equation 4 has one u, o and c, and one forget gate for each dimension; it sums the gated memories."""
    torch.manual_seed(0)
    N = len(extents)
    layer = MDLSTM(5, d, N, LSTM(output, bias=True), sweep=sweep).double()
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias)
    W, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    x, sides = torch.randn(*extents, B, 5).double(), random_sides(extents)
    h, m = np.zeros((2, *extents, B, d))
    for place in product(*map(range, extents)):
        came_h, came_m = [], []
        for n in range(N):
            previous = (*place[:n], place[n] - 1, *place[n + 1 :])
            entry = (*place[:n], *place[n + 1 :])
            came_h.append(h[previous] if place[n] else sides[n].h.numpy()[entry])
            came_m.append(m[previous] if place[n] else sides[n].m.numpy()[entry])
        z = np.split(np.hstack([x[place].numpy(), *came_h]) @ W.T + b, N + 3, axis=1)
        m[place] = sigmoid(z[0]) * np.tanh(z[-1]) + sum(sigmoid(z[1 + n]) * came_m[n] for n in range(N))
        o = sigmoid(z[-2])
        h[place] = np.tanh(o * m[place]) if output == "paper" else o * np.tanh(m[place])
    got = layer(x, sides)
    np.testing.assert_allclose(got.h.detach().numpy(), h, **EXACT)
    np.testing.assert_allclose(got.m.detach().numpy(), m, **EXACT)


def test_diagonals_equal_loops_in_gradient() -> None:
    torch.manual_seed(0)
    x, sides = torch.randn(3, 2, 2, B, 5).double(), random_sides((3, 2, 2))
    leaves = [x, *(each for side in sides for each in side)]
    for leaf in leaves:
        leaf.requires_grad_()
    layer = MDLSTM(5, d, 3, LSTM(bias=True)).double()
    gradients = []
    for sweep in ("auto", "reference"):
        layer.sweep = sweep
        h, m = layer(x, sides)
        gradients.append(torch.autograd.grad(h.square().sum() + m[-1].sum(), [*leaves, *layer.parameters()]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_one_dimension_is_an_lstm() -> None:
    torch.manual_seed(0)
    stacked = StackedLSTM(5, d, 1, time=LSTM(bias=True)).double()
    layer = MDLSTM(d, d, 1, LSTM(bias=True)).double()
    assert stacked.layers.bias is not None
    with torch.no_grad():
        layer.weight.copy_(stacked.layers.weight[0])
        layer.bias.copy_(stacked.layers.bias[0])
    x = torch.randint(5, (B, 6))
    torch.testing.assert_close(layer(stacked.input(x).transpose(0, 1)).h.transpose(0, 1), stacked(x)[0], **EXACT)


@pytest.mark.parametrize("reverse", [(True, False), (False, True), (True, True)])
def test_reversed_dimensions_read_mirrored_data(reverse: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    plain, reversed_layer = MDLSTM(5, d, 2).double(), MDLSTM(5, d, 2, reverse=reverse).double()
    reversed_layer.load_state_dict(plain.state_dict())
    at = [n for n in range(2) if reverse[n]]
    x = torch.randn(3, 4, B, 5).double()
    torch.testing.assert_close(reversed_layer(x).h, plain(x.flip(at)).h.flip(at), **EXACT)
    # The block at the corner where all dimensions begin reads only its own input.
    corner = tuple(-1 if yes else 0 for yes in reverse)
    other = torch.randn_like(x)
    other[corner] = x[corner]
    torch.testing.assert_close(reversed_layer(other).m[corner], reversed_layer(x).m[corner], **EXACT)


@pytest.mark.parametrize("run", [md_scan, md_wavefront])
def test_autocast_changes_only_the_type_of_products(run: Callable[..., HiddenMemory]) -> None:
    sides = [HiddenMemory(*torch.randn(2, 1, B, d)) for _ in range(2)]
    weight, z = torch.randn(5 * d, 2 * d), torch.randn(1, 1, B, 5 * d).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = run(z, weight, sides, (1, 1), "paper")
        multiplied = F.linear(torch.cat([side.h[0] for side in sides], dim=-1), weight)
    expected = md_block(multiplied.float() + z[0, 0].float(), [side.m[0] for side in sides], "paper")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[0, 0], b, rtol=0, atol=1e-6)


def test_sweeps_of_the_sequence_model_agree() -> None:
    torch.manual_seed(0)
    model = MDLSTM2d(5, 4, 3).double()
    x = torch.randint(5, (2, 6))
    y, state = model(x)
    model.blocks.sweep = "reference"
    expected, expected_state = model(x)
    for a, b in zip([y, *state], [expected, *expected_state], strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_memory_grows_with_the_number_of_paths_and_the_grids_does_not() -> None:
    """Section 2.3 says that summed memories may grow combinatorially.

    If forget gates are open and nothing is written, a 1 that enters at the origin reaches (i, j) along
    (i + j)! / (i! j!) paths and is added once for each. A Grid LSTM keeps it at 1.
    """
    n, open_gate = 12, LSTM(forget_bias=40.0)  # sigma(40) = 1 in float64
    start = torch.zeros(n, 1, 1).double()
    one = start.clone()
    one[0] = 1
    sides = [HiddenMemory(start, one), HiddenMemory(start, start)]
    layer = MDLSTM(0, 1, 2, open_gate).double()
    torch.nn.init.zeros_(layer.weight)
    m = layer(start.new_zeros(n, n, 1, 0), sides).m[..., 0, 0]
    assert m.tolist() == [[comb(i + j, i) for j in range(n)] for i in range(n)]

    grid = Grid([Dimension("time", open_gate, 1), Dimension("depth", open_gate, 1)]).double()
    for parameter in grid.parameters():
        torch.nn.init.zeros_(parameter)
    leaving, _ = grid(sides, (n, n))
    assert leaving.m.flatten().tolist() == one.flatten().tolist()


def test_random_mdlstm_memory_explodes_and_grid_memory_stays_bounded() -> None:
    """In a block of a Grid LSTM, |m'| <= |m| + 1, so the memory grows by at most 1 for each block that it passes."""
    torch.manual_seed(0)
    largest = {}
    for n in (8, 32):
        sides = [HiddenMemory(*torch.randn(2, n, B, 20).double()) for _ in range(2)]
        layer = MDLSTM(0, 20, 2).double()
        grid = Grid([Dimension(name, LSTM(), 20) for name in ("time", "depth")]).double()
        ends = grid(sides, (n, n))
        assert all((end.m.abs() <= side.m.abs() + n).all() for end, side in zip(ends, sides, strict=True))
        largest[n] = layer(sides[0].h.new_zeros(n, n, B, 0), sides).m.abs().max().item()
    assert largest[32] > 1e6 * largest[8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a whole number of at least 1, got 0"),
        ({"input_size": -1}, "input_size must be a whole number of at least 1, got -1"),
        ({"dimensions": 4}, "dimensions must be 1, 2 or 3, got 4"),
        ({"cell": PeepholeLSTM()}, "cell must be the LSTM of a multidimensional LSTM, got PeepholeLSTM"),
        ({"reverse": [True]}, "must have 2 values, one per dimension, got 1"),
        ({"sweep": "fast"}, "sweep must be auto or reference, got 'fast'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MDLSTM(**{"input_size": 5, "hidden_size": 3, "dimensions": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 4, 2), (3, 4, 2, 6), (0, 4, 2, 5), (3, 3, 4, 2, 5)])
def test_wrong_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="expected x with 2 extents of at least 1, batch and 5 features"):
        MDLSTM(5, 3, 2)(torch.zeros(shape))


def test_wrong_sides_are_refused() -> None:
    sides = random_sides((3, 4))
    with pytest.raises(UserError, match=r"side 0: expected h and m of shape \(4, 2, 3\)"):
        MDLSTM(5, d, 2).double()(torch.zeros(3, 4, B, 5).double(), sides[::-1])


def test_sides_and_inputs_of_another_kind_are_refused() -> None:
    layer, x = MDLSTM(5, d, 2), torch.zeros(3, 4, B, 5)
    sides = [HiddenMemory(*(each.float() for each in side)) for side in random_sides((3, 4))]
    for entering, given, words in (
        (x, sides[:1], "expected 2 sides, one per dimension, got 1"),
        (x, [sides[0], sides[1].h], "side 1: expected HiddenMemory"),
        (x, random_sides((3, 4)), "expected side 0 of type torch.float32 like the weights, got torch.float64"),
        (x.double(), sides, "expected x of type torch.float32 like the weights, got torch.float64"),
        (x.to("meta"), sides, "expected x on cpu like the weights, got meta"),
    ):
        with pytest.raises(UserError, match=words):
            layer(entering, given)  # type: ignore[arg-type]


def test_fake_tensors_give_shapes_without_memory() -> None:
    layer, x = MDLSTM(5, 4, 2), torch.randn(3, 7, 2, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(x).h.shape == (3, 7, 2, 4)
    assert layer(x).h.isfinite().all(), "a real input must still give real outputs afterwards"
