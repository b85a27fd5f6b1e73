"""Hooks of torch.nn.utils on a module's weights work on transforms as they do on torch.nn.LSTM."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, spectral_norm, weight_norm
from torch.utils.module_tracker import ModuleTracker

from gridlstm import GridLSTM
from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import PeepholeLSTM
from gridlstm.grid import Dimension, Grid, Transform
from gridlstm.models.stacked_lstm import StackedLSTM


def transform_of(model: nn.Module) -> Transform:
    return next(module for module in model.modules() if isinstance(module, Transform))


HOOKS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Tensor]]] = {
    # A function that registers the hook, and one that computes the resulting weight.
    "prune": (lambda t: prune.random_unstructured(t, "weight", 0.5), lambda t: t.weight_orig * t.weight_mask),
    "weight_norm": (
        weight_norm,
        lambda t: t.weight_g * t.weight_v / t.weight_v.norm(dim=tuple(range(1, t.weight_v.dim())), keepdim=True),
    ),
    "spectral_norm": (
        spectral_norm,
        lambda t: t.weight_orig / (t.weight_u @ (t.weight_orig.flatten(1) @ t.weight_v)),
    ),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": lambda: GridLSTM(5, 4, 3, tied=True),
    "untied": lambda: GridLSTM(5, 4, 3),
    "reference": lambda: GridLSTM(5, 4, 3, sweep="reference"),
    "stacked": lambda: StackedLSTM(5, 4, 3, time=LSTM(bias=True)),
    "kernel": lambda: StackedLSTM(5, 4, 3, time=LSTM("standard", bias=True)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("hook", HOOKS)
def test_weight_hook_is_applied_in_every_step(hook: str, model: str) -> None:
    register, weight_of = HOOKS[hook]
    torch.manual_seed(0)
    plain = MODELS[model]().double()
    hooked, fresh = copy.deepcopy(plain), MODELS[model]().double()
    for each in (hooked, fresh):
        register(transform_of(each))
    named = list(plain.named_parameters())
    optimizer = torch.optim.SGD(hooked.parameters(), lr=0.1)
    x, seen = torch.randn(6, 2, 5, dtype=torch.float64), []
    for _ in range(3):
        output = hooked(x)[0]
        found = torch.autograd.grad(output.square().sum(), list(hooked.parameters()))
        # A plain network with the weight that the formula gives must compute the same.
        weight = weight_of(transform_of(hooked))
        values = [weight if p is transform_of(plain).weight else hooked.get_parameter(name) for name, p in named]
        with torch.no_grad():
            for (_, parameter), value in zip(named, values, strict=True):
                parameter.copy_(value)
        expected = plain(x)[0]
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        inner = torch.autograd.grad(expected.square().sum(), list(plain.parameters()))
        outer = torch.autograd.grad(values, list(hooked.parameters()), inner)
        torch.testing.assert_close(found, outer, rtol=0, atol=1e-10)
        for parameter, gradient in zip(hooked.parameters(), found, strict=True):
            parameter.grad = gradient
        optimizer.step()
        seen.append(output.detach())
    assert not torch.equal(seen[1], seen[2])
    hooked.eval()  # so that spectral normalization stops updating its vectors
    fresh.eval().load_state_dict(hooked.state_dict())
    assert torch.equal(fresh(x)[0], hooked(x)[0])


def test_pruning_applies_to_cell_vectors() -> None:
    model, x = GridLSTM(5, 4, 2, time=PeepholeLSTM(), tied=True).double(), torch.randn(6, 2, 5, dtype=torch.float64)
    vectors = transform_of(model).vectors
    nn.init.normal_(vectors["peephole"])
    prune.random_unstructured(vectors, "peephole", 0.5)
    for _ in range(2):
        output = model(x)[0]
        output.sum().backward()
        expected = GridLSTM(5, 4, 2, time=PeepholeLSTM(), tied=True).double()
        assert (vectors["peephole"] == 0).sum() == 6
        state = {**model.state_dict(), "grid.transforms.time.vectors.peephole": vectors["peephole"]}
        expected.load_state_dict(state, strict=False)
        assert torch.equal(output, expected(x)[0])
        with torch.no_grad():
            vectors.get_parameter("peephole_orig").add_(1)


def test_a_hook_of_a_shared_transform_runs_once_per_call() -> None:
    """Otherwise spectral normalization would take several steps of its power iteration."""
    calls = []
    grid = Grid([Dimension("a", LSTM(), 3), Dimension("b", LSTM(), 3, shares="a")])
    grid.transforms["a"].register_forward_pre_hook(lambda *_: calls.append(1))
    side = (torch.randn(2, 1, 3), torch.randn(2, 1, 3))
    grid([side, side], (2, 2))
    assert calls == [1]


class Noise(nn.Module):
    """A parametrization that is random, and counts how often it is computed."""

    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight + 0.1 * torch.randn_like(weight)


@pytest.mark.parametrize("bias", [True, False])
def test_a_parametrized_weight_is_computed_once_for_all_its_dimensions(bias: bool) -> None:
    found = []
    for sweep in ("reference", "wavefront"):
        torch.manual_seed(0)
        cell, noise = LSTM(bias=bias), Noise()
        grid = Grid([Dimension("a", cell, 3), Dimension("b", cell, 3, shares="a")], sweep=sweep)  # type: ignore[arg-type]
        parametrize.register_parametrization(grid.double().transforms["a"], "weight", noise)
        noise.calls = 0
        side = HiddenMemory(*torch.randn(2, 2, 1, 3).double())
        found.append(torch.cat([x for leaving in grid([side, side], (2, 2)) for x in leaving]))
        assert noise.calls == 1
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", MODELS.values())
def test_module_tracker_works_across_repeated_calls(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.randn(6, 2, 5)
    with ModuleTracker():
        for _ in range(2):
            torch.autograd.grad(model(x)[0].sum(), list(model.parameters()))
