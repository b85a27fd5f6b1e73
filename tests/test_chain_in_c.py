"""A layer's chain that is computed in one call of the compiled library equals plain loops in float64."""

from collections.abc import Iterator

import pytest
import torch
from tests.grids import Case, assert_equals_reference
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.engine import compiled, fused, layer_major
from gridlstm.engine.chain import chain, reference_chain
from gridlstm.scan import Block, Weights

SINGLE = torch.empty(0)
# Values are of order 1, so float32 rounds them by 6e-8; gradients are sums of a few thousand terms.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
CELL = LSTM(bias=True)

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C compiler")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every call of the chain adds its name."""
    made: list[str] = []
    original = {name: getattr(fused.FusedStep, name) for name in ("forward_chain", "backward_chain")}
    for name in original:

        def called(self: object, rows: slice, weight: Tensor, name: str = name) -> None:
            made.append(name)
            original[name](self, rows, weight)

        monkeypatch.setattr(fused.FusedStep, name, called)
    return made


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Around the vector lengths, the panels of two vectors, and the most rows of one product.
@pytest.mark.parametrize("d", [1, 7, 8, 16, 17, 33, 100])
@pytest.mark.parametrize("B", [1, 6, 7, 14, 15, 29])
def test_layers_of_a_grid_equal_float64(d: int, B: int, calls: list[str]) -> None:
    block = Block((CELL, LSTM(output="standard")), (d, 5), ((0, 1),), untied=(1,))
    assert_equals_reference(layer_major.layer_major, Case(block, (4, 2), B, scale=0.1), SINGLE, ROUNDING)
    assert calls == ["forward_chain"] * 2 + ["backward_chain"] * 2


@pytest.mark.parametrize("masked", [("select last",), ("drop", "select last"), ("select",)])
def test_dropout_of_other_dimensions_leaves_the_chain_in_one_call(masked: tuple[str, ...], calls: list[str]) -> None:
    block = Block((CELL, LSTM(output="standard")), (17, 5), ((0, 1),), untied=(1,))
    assert_equals_reference(layer_major.layer_major, Case(block, (4, 2), 3, masked, scale=0.1), SINGLE, ROUNDING)
    assert bool(calls) == (masked == ("select last",))


def chained(d: int, B: int, dtype: torch.dtype) -> list[Tensor]:
    """Return values and gradients of a chain of 30 steps."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 0.3) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    # With larger weights the chain would amplify roundings.
    leaves = [random(4 * d, 3 + d, scale=0.5 / d**0.5), random(4 * d), random(30, B, 3), random(B, d), random(B, d)]
    function = reference_chain if dtype == torch.float64 else chain
    outputs, last = function(CELL, Weights(leaves[0], leaves[1], ()), leaves[2], HiddenMemory(*leaves[3:]))
    values = [outputs, *last]
    return [*values, *torch.autograd.grad(sum(x.square().sum() for x in values), leaves)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("d", "B"), [(1, 1), (20, 3), (33, 17), (100, 15)])
def test_chain_of_a_stacked_network_equals_float64(d: int, B: int, calls: list[str]) -> None:
    for single, double in zip(chained(d, B, torch.float32), chained(d, B, torch.float64), strict=True):
        torch.testing.assert_close(single.double(), double, **ROUNDING)
    assert calls == ["forward_chain", "backward_chain"]


def test_rows_split_over_threads_equal_float64(two_threads: None, calls: list[str]) -> None:
    block = Block((CELL, CELL), (60, 40), ((0, 1),), untied=(1,))
    assert_equals_reference(layer_major.layer_major, Case(block, (30, 2), 17, scale=0.1), SINGLE, ROUNDING)
    for single, double in zip(chained(60, 17, torch.float32), chained(60, 17, torch.float64), strict=True):
        torch.testing.assert_close(single.double(), double, **ROUNDING)
    assert len(calls) == 6


@pytest.mark.parametrize(
    "case",
    [
        Case(Block((CELL, CELL), (9, 5), ((0, 1),), untied=(1,)), (4, 2), 3, ("keep",)),
        Case(Block((CELL, CELL), (9, 5), ((0, 1),), untied=(1,)), (4, 2), 3, ("drop",)),
        Case(Block((CELL, CELL), (9, 5), ((0,), (1,)), untied=(1,)), (4, 2), 3),
        Case(Block((CELL, CELL, CELL), (4, 5, 3), ((0, 1, 2),), untied=(2,)), (3, 2, 2), 3),
    ],
    ids=["keep masks", "dropped inputs", "priority", "three dimensions"],
)
def test_layers_that_are_no_plain_chain_take_single_steps(case: Case, calls: list[str]) -> None:
    assert_equals_reference(layer_major.layer_major, case, SINGLE, ROUNDING)
    assert calls == []


def test_operation_counters_see_every_product(calls: list[str]) -> None:
    counted = []
    steps: list[fused.PointwiseStep] = ["fused", "eager"]
    for step in steps:
        with fused.using_step(step), FlopCounterMode(display=False) as counter:
            chained(20, 3, torch.float32)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0
    assert calls == []
