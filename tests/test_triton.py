"""The Triton step equals the reference in Triton's interpreter, and its kernels compile for a GPU.

The interpreter takes 40 ms for each launch of a kernel, so the grids are small.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.grids import (
    DOUBLE,
    EXACT,
    Case,
    assert_equals_reference,
    random_inputs,
    tensors_of,
    values_and_gradients,
)

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import LayerNormLSTM, NonLSTM
from gridlstm.engine import choices, fused, packed, triton_step
from gridlstm.engine.choices import Choices
from gridlstm.engine.dispatch import Sweep
from gridlstm.engine.half_step import half_step
from gridlstm.engine.layer_major import layer_major
from gridlstm.engine.triton_step import TritonStep, check_triton
from gridlstm.engine.wavefront import recomputing_wavefront, wavefront
from gridlstm.errors import UserError
from gridlstm.scan import Block, Masks, Weights, scan

pytest.importorskip("triton", reason="Triton is not installed here")
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from gridlstm.engine import triton_kernels  # needs Triton

# Values are of order 1, so float32 rounds them at 6e-8; gradients here sum a few hundred terms.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}
STANDARD = LSTM("standard", bias=True)


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the Triton step as a user does, and undo that."""
    monkeypatch.setattr(fused, "_forced", "triton")


@pytest.fixture
def launches(triton: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Run the kernels in the interpreter, whatever loaded them before; return the names of those that ran."""
    ran, launch = list[str](), TritonStep._launch

    def record(step: TritonStep, kernel: object, *arguments: object) -> None:
        ran.append(kernel.__name__)  # type: ignore[attr-defined]
        launch(step, kernel, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TritonStep, "_launch", record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.reload(triton_kernels)
        yield ran
    importlib.reload(triton_kernels)


def round_as_a_gpu(builder: InterpreterBuilder, source: TensorHandle, to: tl.dtype) -> TensorHandle:
    """Round to the nearest bfloat16; the interpreter would cut digits off."""
    if to.scalar != tl.bfloat16:
        return builder.cast_impl(source, to)
    rounded = torch.from_numpy(source.data).bfloat16().view(torch.uint16)
    return TensorHandle(rounded.numpy(), to.scalar)


@pytest.mark.parametrize(
    "case",
    [
        Case(Block((LSTM(),), (5,), ((0,),)), (3,), 2),
        Case(Block((STANDARD,), (5,), ((0,),)), (3,), 2, ("mix",)),
        Case(Block((LSTM(), STANDARD), (3, 2), ((0, 1),)), (2, 3), 2, ("keep", "drop")),
        Case(Block((LSTM(), STANDARD), (3, 3), ((1,), (0,)), untied=(1,)), (3, 2), 1, ("keep",)),
        Case(Block((LSTM(), LSTM()), (2, 2), ((0, 1),), same=((1, 0),)), (2, 2), 2),
        Case(Block((LSTM(), STANDARD, LSTM()), (3, 2, 1), ((0, 2), (1,))), (2, 2, 2), 2, ("mix",)),
        Case(Block((STANDARD, LSTM(), LSTM()), (2, 2, 2), ((2,), (1,), (0,)), untied=(2,)), (2, 1, 2), 2),
    ],
    ids=["1-D", "mixed", "2-D masked", "2-D priority untied", "2-D shared", "3-D priority", "3-D three stages untied"],
)
def test_triton_step_equals_reference(case: Case, launches: list[str]) -> None:
    assert_equals_reference(wavefront, case)
    N, diagonals = len(case.extents), sum(case.extents) - len(case.extents) + 1
    assert launches == ["lstm_forward"] * N * diagonals + ["lstm_backward"] * N * diagonals


@pytest.mark.parametrize("sweep", [recomputing_wavefront, layer_major, half_step], ids=["recompute", "layers", "half"])
def test_every_sweep_takes_the_triton_step(sweep: object, launches: list[str]) -> None:
    case = Case(Block((LSTM(), STANDARD), (3, 3), ((0,), (1,))), (2, 2), 2, ("keep",))
    assert_equals_reference(sweep, case)  # type: ignore[arg-type]
    assert ("lstm_gates" in launches) == (sweep is recomputing_wavefront)


@pytest.mark.parametrize("d", [16, 33])
def test_tiles_with_and_without_a_tail_agree(d: int, launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile has 2 rows and 16 units. Of 33 units, the last tile has one unit. Of 3 rows, the last tile has one row."""
    monkeypatch.setattr(triton_step, "MOST_UNITS", 16)
    monkeypatch.setattr(triton_step, "TILE", 32)
    case = Case(Block((LSTM(),), (d,), ((0,),)), (2,), 3, ("keep",))
    assert_equals_reference(wavefront, case, DOUBLE.float(), ROUNDING)
    assert launches


@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront], ids=["gates kept", "recompute"])
@pytest.mark.parametrize(
    "case",
    [
        Case(Block((LSTM(), STANDARD), (5, 3), ((0, 1),), untied=(1,)), (2, 2), 2, scale=0.2),
        Case(Block((STANDARD, LSTM()), (5, 3), ((1,), (0,))), (2, 2), 2, ("keep",), scale=0.2),
        Case(Block((LSTM(), NonLSTM("tanh", bias=True)), (5, 3), ((0,), (1,))), (2, 2), 2, ("drop",), scale=0.2),
        Case(Block((LSTM(), LSTM()), (3, 3), ((0, 1),), same=((1, 0),)), (2, 2), 2, scale=0.2),
    ],
    ids=["untied", "priority, masks", "another cell, dropped inputs", "same weights"],
)
def test_bfloat16_steps_equal_converting_products(
    case: Case, sweep: Sweep, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of gradients of pre-activations, for biases and dimensions with the same weights, are rounded once more."""
    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", round_as_a_gpu)
    weights, sides = random_inputs(case, DOUBLE.float())
    leaves, results = tensors_of(weights, sides), []
    with torch.autocast("cpu", torch.bfloat16):
        for is_low in (packed.is_low, lambda *_: False):
            monkeypatch.setattr(packed, "is_low", is_low)
            results.append(values_and_gradients(sweep, case, weights, sides))
            assert launches
            assert ("lstm_gates" in launches) == (sweep is recomputing_wavefront and len(results) == 2)
            launches.clear()
    (values, gradients), (exact_values, exact_gradients) = results
    torch.testing.assert_close(values, exact_values, rtol=0, atol=0)
    for leaf, got, exact in zip(leaves, gradients, exact_gradients, strict=True):
        rounded_again = bool(case.block.same) or any(leaf is own.bias for own in weights)
        largest = float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(got, exact, rtol=0, atol=2**-7 * largest if rounded_again else 0)


def test_without_gradients_the_values_are_the_same(launches: list[str]) -> None:
    """Without gradients, the sweep has room only for the gates of one diagonal."""
    case = Case(Block((LSTM(), STANDARD), (3, 2), ((0,), (1,))), (2, 2), 2)
    weights, sides = random_inputs(case)
    with torch.no_grad():
        found, exact = (sweep(case.block, weights, sides, case.extents, None) for sweep in (wavefront, scan))
    torch.testing.assert_close(found, exact, **EXACT)
    assert launches


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # infinite, as it should be
@pytest.mark.parametrize(("scale", "atol"), [(1e-6, 1e-30), (1.0, 1e-6)])
def test_saturated_gates_and_tiny_memories_are_exact(scale: float, atol: float, launches: list[str]) -> None:
    # A weight of 1 turns h into any pre-activation; a tiny value must keep its relative accuracy.
    block = Block((LSTM(forget_bias=0.0),), (1,), ((0,),))
    values = scale * torch.tensor([-100.0, -9.0, -0.51, -0.4, -1e-3, 1e-3, 0.3, 0.6, 9.0, 100.0])[:, None]
    results = []
    for sweep, dtype in ((wavefront, torch.float32), (scan, torch.float64)):
        weights = [Weights(torch.ones(4, 1, dtype=dtype), None)]
        h, m = (values.to(dtype, copy=True).requires_grad_() for _ in range(2))
        (out,) = sweep(block, weights, [HiddenMemory(h, m)], (1,), None)
        results.append([*out, *torch.autograd.grad(out.h.sum() + out.m.sum(), [h, m])])
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=3e-6, atol=atol)
    assert launches


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks_let_nan_through_where_the_reference_does(kind: torch.dtype, launches: list[str]) -> None:
    """A boolean mask selects one value and ignores the other; a float mask mixes them, and 0 times NaN is NaN."""
    block = Block((LSTM(),), (20,), ((0,),))
    generator = torch.Generator().manual_seed(0)
    keep = (torch.rand(2, 2, 20, generator=generator) < 0.5).to(kind)
    weight = (torch.randn(80, 20, generator=generator) / 5).requires_grad_()
    h, m = (torch.randn(2, 20, generator=generator) for _ in range(2))
    h[0, 3] = m[1, 4] = torch.nan
    found = []
    for sweep in (scan, wavefront):
        leaves = [weight, h.requires_grad_(), m.requires_grad_()]
        (out,) = sweep(block, [Weights(weight, None)], [HiddenMemory(h, m)], (2,), [Masks(keep, keep.flip(0))])
        from_above = [torch.where(keep[k] > 0, torch.nan, 1.0) for k in range(2)]
        found.append([*out, *torch.autograd.grad(list(out), leaves, from_above)])
    for expected, got in zip(*found, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
    assert found[0][0].isnan().any()
    assert launches


def test_other_cells_and_types_keep_their_step(launches: list[str]) -> None:
    case = Case(Block((LayerNormLSTM(), LSTM()), (3, 3), ((0, 1),)), (2, 2), 2)
    assert_equals_reference(wavefront, case)
    assert len(launches) == 6
    launches.clear()
    single = Case(Block((LSTM(),), (3,), ((0,),)), (2,), 2)
    assert_equals_reference(wavefront, single, DOUBLE.bfloat16(), {"rtol": 0.1, "atol": 0.1})
    assert not launches


class Hopper:
    """Stands in for Triton's driver on a machine without a GPU, so that kernels compile for one."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(Block((LSTM(),), (5,), ((0,),)), (1,), 2, ("keep",)),
        Case(Block((STANDARD, LSTM()), (16, 16), ((0,), (1,))), (2, 1), 2),
        Case(Block((LSTM(), LSTM(), LSTM()), (1, 2, 3), ((0,), (1,), (2,))), (1, 2, 1), 1, ("mix",)),
    ],
    ids=["boolean masks", "two stages", "three stages, masks of floats"],
)
def test_kernels_compile_for_a_gpu(
    case: Case, dtype: torch.dtype, triton: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The interpreter accepts more than the compiler. Here the compiler gets the arguments of a real sweep.

    bfloat16 stands for float32 under autocast.
    """
    from triton.runtime import driver

    compiled = {}

    def warm_up(step: TritonStep, kernel: object, blocks: slice, tensors: tuple[object, ...], *numbers: int) -> None:
        first, end = blocks.start * step.B, blocks.stop * step.B
        arguments = (*tensors, first, end, *numbers, *step.tile)
        compiled[kernel.__name__] = kernel.warmup(*arguments, grid=(1, 1))  # type: ignore[attr-defined]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(TritonStep, "_launch", warm_up)
    monkeypatch.setattr(triton_step, "interpreted", lambda: True)  # so that tensors of the CPU do
    importlib.reload(triton_kernels)
    monkeypatch.setattr(driver, "_active", Hopper())
    low = dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        state = DOUBLE.to(torch.float32 if low else dtype)
        values_and_gradients(recomputing_wavefront, case, *random_inputs(case, state))
    assert set(compiled) == {"lstm_forward", "lstm_backward"} | (set() if low else {"lstm_gates"})
    for name, kernel in compiled.items():
        assert f".entry {name}" in kernel.asm["ptx"]
        assert kernel.asm["cubin"]


def test_nobody_gets_the_triton_step_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_forced", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choices.current().pointwise != "triton"


def test_triton_is_refused_where_it_cannot_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, triton: None
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(UserError, match=r"^x=triton cannot work here: torch finds no CUDA device\. .*Remove"):
        check_triton("x=triton", gpu)
    # A checkpoint may come from a machine that has one.
    choices.force(Choices("native", "triton"))
    assert choices.current().pointwise in ("fused", "eager")
    assert "will differ by rounding" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_triton("x=triton", gpu)
    assert choices.current().pointwise == "triton"
    with pytest.raises(UserError, match="the tensors are on the cpu"):
        check_triton("x=triton", cpu)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check_triton("x=triton", cpu)
    with pytest.raises(UserError, match="TRITON_INTERPRET=1 moves them to the CPU"):
        check_triton("x=triton", gpu)
    monkeypatch.setattr(triton_step, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package triton is not installed"):
        check_triton("x=triton", gpu)
