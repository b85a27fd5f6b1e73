"""Sweeps whose steps read and write bfloat16 give the same numbers as sweeps whose products convert to it."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from tests.grids import Case, random_inputs, values_and_gradients

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import Carry, NonLSTM
from gridlstm.engine import compiled, fused, packed
from gridlstm.engine.dispatch import Sweep, sweep_named
from gridlstm.engine.layer_major import layer_major
from gridlstm.engine.wavefront import recomputing_wavefront, wavefront
from gridlstm.scan import Block, Masks, scan

SINGLE = torch.empty(0)
PAIR = (LSTM(bias=True), LSTM(bias=True, output="standard"))
CASES = {
    "tied": Case(Block(PAIR, (20, 20), ((0, 1),)), (7, 5), 10, scale=0.2),
    "one row": Case(Block(PAIR, (3, 20), ((0, 1),)), (4, 3), 1, scale=0.2),
    "untied": Case(Block(PAIR, (20, 33), ((0, 1),), untied=(1,)), (4, 3), 3, scale=0.2),
    "untied along time": Case(Block(PAIR, (17, 16), ((0, 1),), untied=(0,)), (5, 2), 3, scale=0.2),
    "priority": Case(Block(PAIR, (5, 20), ((1,), (0,))), (4, 5), 2, scale=0.2),
    "masks": Case(Block(PAIR, (20, 5), ((0,), (1,))), (4, 3), 2, ("keep",), scale=0.2),
    "mixed masks": Case(Block(PAIR, (20, 5), ((0, 1),)), (4, 3), 2, ("mix",), scale=0.2),
    "dropped inputs": Case(Block(PAIR, (20, 5), ((0, 1),)), (4, 3), 2, ("drop",), scale=0.2),
    "three dimensions": Case(Block((*PAIR, LSTM()), (4, 16, 20), ((0, 2), (1,))), (3, 2, 4), 2, scale=0.2),
    "other cells": Case(
        Block((PAIR[0], NonLSTM("tanh", bias=True), Carry()), (20, 5, 3), ((0,), (1, 2))), (4, 3, 2), 2, scale=0.2
    ),
    "same weights, dropped inputs": Case(
        Block((PAIR[0], PAIR[0], NonLSTM()), (20, 20, 5), ((0, 1), (2,)), same=((1, 0),)),
        (4, 3, 1),
        2,
        ("drop", "keep"),
        scale=0.2,
    ),
    "same weights, selected inputs": Case(
        Block((LSTM(), LSTM(), NonLSTM()), (33, 33, 5), ((0, 1), (2,)), same=((1, 0),)),
        (4, 3, 1),
        2,
        ("select", "keep"),
        scale=0.2,
    ),
    "same weights": Case(Block((PAIR[0],) * 2, (20, 20), ((0, 1),), same=((1, 0),)), (4, 3), 2, scale=0.2),
}
needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront])
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_steps_equal_converting_products(name: str, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def is_low(*args: object) -> bool:
        used.append(original(*args))  # type: ignore[arg-type]
        return used[-1]

    original = packed.is_low
    monkeypatch.setattr(packed, "is_low", is_low)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(sweep, CASES[name], *random_inputs(CASES[name], SINGLE))
        monkeypatch.setattr(packed, "is_low", lambda *_: False)
        expected = values_and_gradients(sweep, CASES[name], *random_inputs(CASES[name], SINGLE))
    assert used == [True]
    # Gradients for a learned bias of other cells are rounded once more before they are added.
    rounding = 2**-7 if name == "other cells" else 0.0
    for got, exact in zip(chain(*found), chain(*expected), strict=True):
        torch.testing.assert_close(
            got, exact, rtol=0, atol=rounding * (float(exact.abs().max()) if exact.numel() else 0.0)
        )


@needs_compiler
def test_bfloat16_steps_equal_converting_products_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["tied"]
    weights, sides = random_inputs(case, SINGLE)

    def run() -> list[HiddenMemory]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return wavefront(case.block, weights, sides, case.extents)

    found = run()
    monkeypatch.setattr(packed, "is_low", lambda *_: False)
    for got, exact in zip(found, run(), strict=True):
        assert torch.equal(got.h, exact.h)
        assert torch.equal(got.m, exact.m)


@needs_compiler
def test_second_backward_pass_equals_the_first_in_bfloat16() -> None:
    case = CASES["untied"]
    weights, sides = random_inputs(case, SINGLE)
    with torch.autocast("cpu", torch.bfloat16):
        out = wavefront(case.block, weights, sides, case.extents)
    loss = sum(x.square().sum() for side in out for x in side)
    assert isinstance(loss, torch.Tensor)
    leaves = [weights[0].weight, sides[1].m]
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for got, exact in zip(torch.autograd.grad(loss, leaves), first, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-6)  # gates are computed again, by other products


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e-30])
def test_special_values_round_to_bfloat16_as_in_pytorch(value: float) -> None:
    block = Block((LSTM(output="standard"),), (16,), ((0,),))
    weights, sides = random_inputs(Case(block, (2,), 2), SINGLE)
    sides[0].m.data[0, 3] = value
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        found = wavefront(block, weights, sides, (2,))[0]
        patch.setattr(packed, "is_low", lambda *_: False)
        expected = wavefront(block, weights, sides, (2,))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("most_chained", [0, 6e7])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["tied", "one row", "untied", "mixed masks", "dropped inputs", "selected", "wide"])
def test_layers_in_bfloat16_equal_float64(
    name: str, threads: int, most_chained: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of 300 products whose factors are rounded by 2^-9; weights are small, so that errors do not grow."""
    wide = Case(Block(PAIR, (160, 130), ((0, 1),), untied=(1,)), (4, 3), 30, scale=0.05)
    case = CASES.get(name) or {"wide": wide, "selected": replace(CASES["dropped inputs"], masked=("select",))}[name]
    called, run = [], fused.FusedStep.forward_chain
    monkeypatch.setattr(fused, "LOW_MOST_CHAINED", most_chained)
    monkeypatch.setattr(fused.FusedStep, "forward_chain", lambda *args: (called.append(args), run(*args)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = values_and_gradients(layer_major, case, *random_inputs(case, SINGLE))
    finally:
        torch.set_num_threads(before)
    assert bool(called) == (most_chained > 0 and name not in ("mixed masks", "dropped inputs", "selected"))
    expected = values_and_gradients(scan, case, *random_inputs(case))
    for got, exact in zip(chain(*found), chain(*expected), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=2**-5 * float(exact.abs().max()))


@needs_compiler
@pytest.mark.parametrize("dropped", ["", "time", "depth"])
@pytest.mark.parametrize(
    ("size", "extents", "low", "sweep"),
    [
        (100, (42, 43), False, layer_major),
        (100, (42, 43), True, layer_major),
        (32, (20, 10), False, layer_major),  # short steps, but fewer layers than diagonals
        (32, (4, 20), False, wavefront),
        (400, (49, 18), True, layer_major),  # too large for a chain, but long steps
    ],
)
def test_untied_grid_sweeps_layers_where_these_are_faster(
    size: int, extents: tuple[int, ...], low: bool, sweep: Sweep, dropped: str
) -> None:
    block, like = Block((LSTM(), LSTM()), (size, size), ((0, 1),), untied=(1,)), torch.empty(15, size)
    masks = [Masks(drop=torch.ones(1)) if dropped == name else Masks() for name in ("time", "depth")]
    short = size == 32 or (size == 100 and low)
    chained = not dropped or (dropped == "depth" and not low)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        # Without a chain in one call, starting a short step takes longer than its product.
        assert sweep_named("auto", block, extents, like, masks) is (sweep if chained or not short else wavefront)


@needs_compiler
def test_bfloat16_sweep_saves_pre_activations_instead_of_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["tied"]
    weights, sides = random_inputs(case, SINGLE)

    def saved_bytes() -> int:
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
            wavefront(case.block, weights, sides, case.extents)
        return sum(x.numel() * x.element_size() for x in saved)

    D, blocks, exits = 40, 35, 7
    with torch.autocast("cpu", torch.bfloat16):
        low = saved_bytes()
        monkeypatch.setattr(packed, "is_low", lambda *_: False)
        converting = saved_bytes()
    pre_activations, h, gates = 2 * 4 * D * blocks, 2 * D * (blocks + exits), 4 * 4 * D * blocks
    assert low - converting == case.B * (pre_activations + h - gates)
