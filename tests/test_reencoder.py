"""The Reencoder against its equations, computed block by block."""

from collections.abc import Mapping

import pytest
import torch
from tests.test_translation_models import LENGTHS, pairs
from torch import Tensor

from gridlstm.cells import Carry, NonLSTM
from gridlstm.grid import Dimension, Grid
from gridlstm.models.reencoder import ReadOut, Reencoder

D = 4


def plain(model: Reencoder, source: list[int], inputs: list[int], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Return y of every target step of one pair, computed by loops over the blocks of each grid in turn."""
    S, T, L = len(source), len(inputs), len(model.grids)
    zeros = torch.zeros(D, dtype=torch.float64)
    below = {(s, t): zeros for s in range(S) for t in range(T)}
    ends: dict[int, Tensor] = {}
    for layer in range(L):
        W, V = (weights[f"grids.{layer}.transforms.{name}.weight"] for name in ("source", "depth"))
        forward = (L - layer) % 2 == 0
        target_h, target_m, above = {}, {}, {}
        for s in range(S):
            word = weights["source.weight"][source[s]] if layer == 0 else torch.cat([zeros, zeros])
            target_h[s], target_m[s] = word[:D], word[D:]
        for t in range(T):
            word = weights["target.weight"][inputs[t]] if layer == 0 else torch.cat([zeros, zeros])
            h, m = word[:D], word[D:]
            for s in range(S) if forward else reversed(range(S)):
                u, f, o, c = (W @ torch.cat([h, target_h[s], below[s, t]])).split(D)
                f = f + 1  # the constant forget bias
                m = f.sigmoid() * m + u.sigmoid() * c.tanh()
                target_m[s] = f.sigmoid() * target_m[s] + u.sigmoid() * c.tanh()
                h, target_h[s] = (o.sigmoid() * m).tanh(), (o.sigmoid() * target_m[s]).tanh()
                if len(V):
                    above[s, t] = V @ torch.cat([h, target_h[s], below[s, t]])
            ends[t] = torch.cat([h, m])
        below = above
    if model.gated is None:
        return [ends[t] for t in range(T)]
    A, a = weights["gated.weight"], weights["gated.bias"]
    gated = {place: (A @ k + a).chunk(2) for place, k in below.items()}
    return [torch.stack([gated[s, t][0] * gated[s, t][1].sigmoid() for s in range(S)]).amax(0) for t in range(T)]


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("read_out", ["end", "gated_max"])
def test_a_padded_batch_is_its_plain_loops_in_value_and_gradient(read_out: ReadOut, num_layers: int) -> None:
    torch.manual_seed(0)
    model = Reencoder(7, 6, D, num_layers, read_out=read_out).double()
    weights = dict(model.named_parameters())
    source, mask, inputs = pairs()
    rows = [
        torch.stack(plain(model, source[row, :length].tolist(), inputs[row].tolist(), weights))
        for row, length in enumerate(LENGTHS.tolist())
    ]
    expected, found = torch.stack(rows), model(source, mask, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    direction = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad((y * direction).sum(), list(weights.values()), allow_unused=True, materialize_grads=True)
        for y in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sweep", ["reference", "wavefront", "recompute"])
def test_every_sweep_gives_the_same_numbers(sweep: str) -> None:
    torch.manual_seed(0)
    fast = Reencoder(7, 6, D).double()
    other = Reencoder(7, 6, D, sweep=sweep).double()  # type: ignore[arg-type]
    other.load_state_dict(fast.state_dict())
    torch.testing.assert_close(other(*pairs()), fast(*pairs()), rtol=0, atol=1e-13)


@pytest.mark.parametrize("read_out", ["end", "gated_max"])
def test_one_word_of_one_sentence_is_computed_by_every_sweep(read_out: ReadOut) -> None:
    """The sweep has so few rows that it reads the weights where they are."""
    torch.manual_seed(0)
    model = Reencoder(9, 9, 146, read_out=read_out).double().eval()
    source, mask, word = torch.randint(9, (1, 3)), torch.ones(1, 3, dtype=torch.bool), torch.randint(9, (1, 1))
    found = []
    for sweep in ("reference", "auto", "wavefront", "recompute"):
        for grid in model.grids:
            grid.sweep = sweep
        with torch.no_grad():
            found.append(model(source, mask, word)[0])
    for got in found[1:]:
        torch.testing.assert_close(got, found[0], rtol=1e-11, atol=1e-11)


def test_dropout_acts_inside_the_blocks_only_in_training() -> None:
    torch.manual_seed(0)
    model = Reencoder(7, 6, D, dropout=0.5).double()
    assert not torch.equal(model(*pairs()), model(*pairs()))
    model.eval()
    assert torch.equal(model(*pairs()), model(*pairs()))


def test_the_papers_network_shares_weights_of_source_and_target_and_has_no_unused_weights() -> None:
    with torch.device("meta"):
        model = Reencoder(7055, 5646, 450)
    d = 450
    assert sum(p.numel() for p in model.grids.parameters()) == 2 * 4 * d * 3 * d + d * 3 * d
    assert model.output_size == 2 * d


@pytest.mark.parametrize("sweep", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dimension_without_a_transform_carries_its_vectors_to_every_block(sweep: str, dtype: torch.dtype) -> None:
    """The dimension equals one whose weights are the identity on its own columns."""
    torch.manual_seed(0)
    carried, identity = (
        Grid([Dimension("time", NonLSTM("tanh"), 3), Dimension("depth", cell, 3)], sweep=sweep).to(dtype)  # type: ignore[arg-type]
        for cell in (Carry(), NonLSTM())
    )
    weight = identity.transforms["depth"].weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.copy_(torch.eye(3, 6).roll(3, 1))
    identity.transforms["time"].load_state_dict(carried.transforms["time"].state_dict())
    sides = [torch.randn(4, 2, 3, dtype=dtype), torch.randn(5, 2, 3, dtype=dtype, requires_grad=True)]
    results = []
    for grid in (carried, identity):
        time, depth = grid([(side, side.new_zeros(*side.shape[:-1], 0)) for side in sides], (5, 4))
        loss = time.h.sum() + depth.h.square().sum()
        gradients = torch.autograd.grad(loss, [sides[1], *grid.transforms["time"].parameters()])
        results.append([time.h, depth.h, *gradients])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert sum(p.numel() for p in carried.transforms["depth"].parameters()) == 0
