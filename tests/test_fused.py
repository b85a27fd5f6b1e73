"""The compiled pointwise step equals plain PyTorch up to float32 rounding."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.grids import Case, assert_equals_reference
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gridlstm import GridLSTM
from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import LayerNormLSTM
from gridlstm.engine import build, compiled, fused
from gridlstm.engine.dispatch import Sweep
from gridlstm.engine.dropout import Factors
from gridlstm.engine.fused import PointwiseStep, using_step
from gridlstm.engine.layer_major import layer_major
from gridlstm.engine.wavefront import recomputing_wavefront, wavefront
from gridlstm.scan import Block, Masks, Weights, scan

# Values are of order 1, so float32 rounds them by 6e-8; gradients are sums of a few hundred terms.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def fresh_library() -> Iterator[None]:
    compiled.library.cache_clear()
    yield
    compiled.library.cache_clear()


def run(
    dtype: torch.dtype,
    d: int,
    cell: LSTM,
    stages: tuple[tuple[int, ...], ...],
    scale: float,
    sweep: Sweep = wavefront,
) -> list[Tensor]:
    """Return values and gradients of a grid of 4 x 3."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(dtype).requires_grad_()

    block = Block((cell, replace(cell, output="standard")), (d, d), stages)
    weights = [
        Weights(random(4 * d, 2 * d), None, tuple(random(length) for length in cell.vector_lengths(d).values()))
        for _ in range(2)
    ]
    sides = [HiddenMemory(random(extent, 2, d), random(extent, 2, d)) for extent in (3, 4)]
    out = [x for side in sweep(block, weights, sides, (4, 3), None) for x in side]
    leaves = [x for w in weights for x in (w.weight, *w.vectors)] + [x for side in sides for x in side]
    return [*out, *torch.autograd.grad(sum(x.square().sum() for x in out), leaves)]  # type: ignore[arg-type]


needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("d", [1, 15, 16, 17, 33])  # around the vector length of the C code
@pytest.mark.parametrize("stages", [((0, 1),), ((0,), (1,)), ((1,), (0,))])
@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront])
@pytest.mark.parametrize("cell", [LSTM(), LayerNormLSTM()])
def test_fused_step_equals_float64(cell: LSTM, d: int, stages: tuple[tuple[int, ...], ...], sweep: Sweep) -> None:
    scale = 0.5 / d**0.25
    for single, double in zip(
        run(torch.float32, d, cell, stages, scale, sweep),
        run(torch.float64, d, cell, stages, scale, sweep),
        strict=True,
    ):
        torch.testing.assert_close(single.double(), double, **ROUNDING)


@needs_compiler
@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront, layer_major])
@pytest.mark.parametrize("d", [5, 32])
@pytest.mark.parametrize("kind", ["padding", "rows", "rows of h", "rows and units", "zoneout", "mixture", "memory"])
@pytest.mark.parametrize("cell", [LSTM(), LayerNormLSTM()])
def test_masked_steps_equal_float64(cell: LSTM, kind: str, d: int, sweep: Sweep) -> None:
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(2, 4, 3, 2, d, generator=generator)
    h, m = {
        "padding": (torch.arange(4)[:, None, None, None] >= torch.tensor([2, 4])[:, None],) * 2,
        "rows": (keep[0, ..., :1] < 0.5, keep[1, ..., :1] < 0.5),
        "rows of h": (keep[0, ..., :1] < 0.5, None),
        "rows and units": (keep[0], keep[1, ..., :1] < 0.5),
        "zoneout": (keep[0] < 0.5, keep[1] < 0.5),
        "mixture": (keep[0], None),
        "memory": (None, keep[1]),
    }[kind]
    masks = [Masks(h, m), Masks(drop=torch.full((1,), 0.7))]
    results = []
    for dtype in (torch.float32, torch.float64):
        cast = [Masks(*(x.to(dtype) if x is not None and x.is_floating_point() else x for x in mask)) for mask in masks]

        def masked(
            block: Block,
            weights: Sequence[Weights],
            sides: Sequence[HiddenMemory],
            extents: Sequence[int],
            _: object,
            cast: Sequence[Masks] = cast,
        ) -> list[HiddenMemory]:
            return sweep(block, weights, sides, extents, cast)

        results.append(run(dtype, d, cell, ((0,), (1,)), 0.4, masked))
    for single, double in zip(*results, strict=True):
        torch.testing.assert_close(single.double(), double, **ROUNDING)


@needs_compiler
@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront])
@pytest.mark.parametrize("d", [5, 16, 33])
@pytest.mark.parametrize("masked", [(), ("keep", "select"), ("mix", "drop")])
@pytest.mark.parametrize(
    ("cells", "stages", "same"),
    [
        ((LSTM(bias=True),) * 2, ((0, 1),), ((1, 0),)),
        ((LSTM("standard"),) * 3, ((2,), (0, 1)), ((0, 1),)),
        ((LSTM(bias=True), LSTM(), LSTM(), LSTM(bias=True)), ((0, 1, 2, 3),), ((3, 0), (2, 1))),
        ((LSTM(bias=True),) * 3, ((0, 1, 2),), ((1, 0), (2, 0))),
        ((LSTM(bias=True),) * 3, ((0, 1), (2,)), ((1, 0),)),  # like the Reencoder: a later stage follows
    ],
)
def test_joint_steps_equal_float64(
    cells: tuple[LSTM, ...],
    stages: tuple[tuple[int, ...], ...],
    same: tuple[tuple[int, int], ...],
    masked: tuple[str, ...],
    d: int,
    sweep: Sweep,
) -> None:
    """One step computes all dimensions with the same pre-activations."""
    block = Block(cells, (d,) * len(cells), stages, same=same)
    assert fused.joint_fits(block, torch.empty(0))
    case = Case(block, (3, 2, 4, 2)[: len(cells)], 2, masked, scale=0.4 / d**0.5)
    assert_equals_reference(sweep, case, torch.empty(0), ROUNDING)


@needs_compiler
@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront])
def test_joint_steps_with_untied_weights_equal_float64(sweep: Sweep) -> None:
    block = Block((LSTM(bias=True),) * 2, (20, 20), ((0, 1),), untied=(1,), same=((1, 0),))
    assert_equals_reference(sweep, Case(block, (4, 3), 3, scale=0.1), torch.empty(0), ROUNDING)


@needs_compiler
def test_more_dimensions_than_a_joint_step_computes_are_computed_one_by_one() -> None:
    N = fused.MOST_SHARING + 1
    block = Block((LSTM(),) * N, (2,) * N, (tuple(range(N)),), same=tuple((n, 0) for n in range(1, N)))
    assert not fused.joint_fits(block, torch.empty(0))
    assert_equals_reference(wavefront, Case(block, (2, *(1,) * (N - 1)), 2, scale=0.2), torch.empty(0), ROUNDING)


@needs_compiler
@pytest.mark.parametrize("columns", [slice(0, 1), slice(0, 33), slice(5, 25)])  # of 33
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("low", [False, True])
def test_compiled_dropout_equals_plain_operations(
    low: bool, threads: int, columns: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    everything = torch.randn(3, 50, 20, 33, generator=generator)
    x, to, gradient = everything[..., columns]
    x[0, 0, 0] = torch.nan
    drop, scale = torch.rand(50, 20, 33, generator=generator) < 0.7, 1 + torch.rand(33, generator=generator)
    factors = Factors(drop, scale, slice(0, 33)).of(slice(0, 50), columns)
    kind, before, found = torch.bfloat16 if low else torch.float32, torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for library in (compiled.library(), None):
            monkeypatch.setattr(compiled, "library", lambda library=library: library)
            assert factors._library(x, to) is library
            outs = [everything.clone()[1, ..., columns] for _ in range(2)]  # with the rows' distance of ``to``
            outs.append(factors.times(x, torch.empty_like(x, dtype=kind)))
            for out, add in zip(outs[:2], (False, True), strict=True):
                factors.times_into(out, gradient.to(kind), add)
            found.append(outs)
    finally:
        torch.set_num_threads(before)
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6, equal_nan=True)  # C adds with one rounding


@needs_compiler
def test_saturated_gates_and_tiny_memories_are_exact() -> None:
    # 1 x 1 weights turn h into any pre-activation; a tiny value must keep its relative accuracy.
    for scale in (1e-6, 1.0, 50.0):
        cell = LSTM(forget_bias=0.0)
        for single, double in zip(
            run(torch.float32, 1, cell, ((0, 1),), scale), run(torch.float64, 1, cell, ((0, 1),), scale), strict=True
        ):
            torch.testing.assert_close(single.double(), double, rtol=3e-6, atol=1e-30 if scale < 1 else 1e-6)


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("cell", [LSTM(), LayerNormLSTM()])
def test_nan_stays_nan_in_its_own_row(cell: LSTM, value: float) -> None:
    block = Block((cell,), (20,), ((0,),))
    vectors = tuple(torch.ones(length) for length in cell.vector_lengths(20).values())
    weights = [Weights(torch.ones(80, 20), None, vectors)]
    h, m = torch.ones(2, 20), torch.ones(2, 20)
    clean = wavefront(block, weights, [HiddenMemory(h, m)], (3,))[0]
    h = h.clone()
    h[0, 3] = value
    poisoned = wavefront(block, weights, [HiddenMemory(h, m)], (3,))[0]
    assert torch.equal(poisoned.h[1], clean.h[1])
    assert torch.equal(poisoned.m[1], clean.m[1])
    if value != value:
        assert poisoned.h[0].isnan().all()
        assert poisoned.m[0].isnan().all()


@needs_compiler
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("sweep", [wavefront, layer_major])
@pytest.mark.parametrize("cell", [LSTM(), LayerNormLSTM()])
def test_masks_let_nan_through_where_the_reference_does(cell: LSTM, sweep: Sweep, size: int, kind: torch.dtype) -> None:
    """A boolean mask selects one value and ignores the other; a float mask mixes them, and 0 times NaN is NaN."""
    block = Block((cell, cell), (20, 20), ((0, 1),))
    generator = torch.Generator().manual_seed(0)
    vectors = tuple(torch.ones(length) for length in cell.vector_lengths(20).values())
    weights = [Weights(torch.randn(80, 40, generator=generator) / 6, None, vectors) for _ in range(2)]
    keep = (torch.rand(4, 3, 2, size, generator=generator) < 0.5).to(kind)
    masks = [Masks(keep, keep.flip(0)), Masks()]
    sides = [HiddenMemory(*torch.randn(2, extent, 2, 20, generator=generator)) for extent in (3, 4)]
    sides[1].h[1, 0] = torch.nan  # enters step 1 from below
    leaves = [x.requires_grad_() for x in (*(w.weight for w in weights), *vectors, *(x for s in sides for x in s))]
    found = []
    for run in (scan, sweep):
        out = [x for side in run(block, weights, sides, (4, 3), masks) for x in side]
        from_above = [
            torch.where(torch.rand(x.shape, generator=generator.manual_seed(1)) < 0.2, torch.nan, x) for x in out
        ]
        found.append([*out, *torch.autograd.grad(out, leaves, from_above)])
    for expected, got in zip(*found, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())


@needs_compiler
@pytest.mark.parametrize(("run", "threads"), [(wavefront, 1), (wavefront, 2), (scan, 1)])
def test_gradients_of_gain_and_shift_stay_precise_for_many_rows(run: Sweep, threads: int) -> None:
    """Adding 40,000 rows one by one in float32 would give an error of 5e-6."""
    block = Block((LayerNormLSTM(),), (4,), ((0,),))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator) for shape in ((16, 4), (20,), (20,), (20_000, 4), (20_000, 4))]
    before, gradients = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for dtype in (torch.float32, torch.float64):
            weight, gain, shift, h, m = (x.to(dtype).requires_grad_() for x in inputs)
            ((out, memory),) = run(block, [Weights(weight, None, (gain, shift))], [HiddenMemory(h, m)], (2,))
            gradients.append(torch.autograd.grad(out.sum() + memory.sum(), [gain, shift]))
    finally:
        torch.set_num_threads(before)
    for single, double in zip(*gradients, strict=True):
        assert (single - double).norm() < 5e-7 * double.norm()


@needs_compiler
@pytest.mark.parametrize(
    ("cell", "same"), [(LSTM(), ()), (LSTM(bias=True), ()), (LSTM(bias=True), ((1, 0),)), (LayerNormLSTM(), ())]
)
@pytest.mark.parametrize("untied", [(), (1,)])
def test_results_do_not_depend_on_the_number_of_threads(
    cell: LSTM, same: tuple[tuple[int, int], ...], untied: tuple[int, ...]
) -> None:
    before, results = torch.get_num_threads(), []
    generator = torch.Generator().manual_seed(0)
    # The widest diagonal has 12 x 16 rows of 100 numbers, enough for several threads.
    block = Block((cell, cell), (100, 100), ((0, 1),), untied, same)
    copies = (12,) * len(untied)

    def random(*shape: int) -> Tensor:
        return torch.randn(*copies, *shape, generator=generator).requires_grad_()

    weights = [
        Weights(
            random(400, 200) / 14,
            random(400) if cell.has_bias else None,
            tuple(random(n) for n in cell.vector_lengths(100).values()),
        )
        for _ in range(2)
    ]
    for n, owner in same:
        weights[n] = weights[owner]
    sides = [HiddenMemory(*torch.randn(2, 12, 16, 100, generator=generator).requires_grad_()) for _ in range(2)]
    try:
        # A script may change the number between the passes.
        for forward, backward in ((1, 1), (2, 2), (1, 2), (2, 1)):
            torch.set_num_threads(forward)
            out = [x for side in wavefront(block, weights, sides, (12, 12)) for x in side]
            biases = [] if weights[0].bias is None else [weights[0].bias]
            leaves = [x for s in sides for x in s] + [vector for w in weights for vector in w.vectors] + biases
            torch.set_num_threads(backward)
            gradients = torch.autograd.grad(sum(x.sum() for x in out), leaves)  # type: ignore[arg-type]
            results.append([*out, *gradients])
    finally:
        torch.set_num_threads(before)
    # Gradients of biases and vectors are sums over 2,304 rows, in different orders.
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("forward", "backward"), [("fused", "eager"), ("eager", "fused")])
def test_a_backward_pass_uses_the_step_of_its_forward_pass(
    tied: bool, forward: PointwiseStep, backward: PointwiseStep
) -> None:
    """With masks, as of lengths, steps differ in what they keep."""
    network = GridLSTM(5, 8, 3, tied=tied)
    x, lengths = torch.randn(6, 3, 5), torch.tensor([6, 3, 2])
    found = []
    for last in (forward, backward):
        with using_step(forward):
            loss = network(x, lengths=lengths)[0].square().sum()
        with using_step(last):
            found.append(torch.autograd.grad(loss, list(network.parameters())))
            assert fused.pointwise_step() == last
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_the_library_is_built_where_there_is_a_compiler() -> None:
    """Otherwise the other tests of the C code would be skipped."""
    assert compiled.library() is not None


@pytest.mark.usefixtures("fresh_library")
def test_without_a_compiler_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with_compiler = run(torch.float32, 9, LSTM(), ((0, 1),), 0.5)
    compiled.library.cache_clear()
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert fused.pointwise_step() == "eager"
    for ours, plain in zip(with_compiler, run(torch.float32, 9, LSTM(), ((0, 1),), 0.5), strict=True):
        torch.testing.assert_close(ours, plain, **ROUNDING)


@pytest.mark.usefixtures("fresh_library")
def test_a_failed_build_is_logged_and_falls_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("not C")
    monkeypatch.setattr(compiled, "SOURCES", (broken,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level("INFO"):
        assert compiled.library() is None
    assert "plain PyTorch instead" in caplog.text


@needs_compiler
@pytest.mark.usefixtures("fresh_library")
def test_a_damaged_library_of_the_cache_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    simple = tmp_path / "simple.c"
    simple.write_text("int number(void) { return 7; }")

    def number(cache: str) -> int:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        return int(build.load("simple", ("cc", "gcc"), (simple,), ()).number())

    assert number("intact") == 7
    (built,) = (tmp_path / "intact").rglob("simple-*.so")
    # Another path, because a process opens a path only once.
    damaged = tmp_path / "damaged" / built.relative_to(tmp_path / "intact")
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")
    assert number("damaged") == 7
    assert damaged.stat().st_size > 0


@pytest.mark.usefixtures("fresh_library")
def test_a_missing_home_directory_falls_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A container may run as a user whose ID is not in its password file."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with caplog.at_level("INFO"):
        assert compiled.library() is None
    assert "there is no home directory. Set XDG_CACHE_HOME" in caplog.text


def test_fake_tensors_use_plain_operations() -> None:
    with FakeTensorMode():
        layer = GridLSTM(5, 4, 3)
        output, _ = layer(torch.randn(13, 2, 5))
        output.sum().backward()
    assert output.shape == (13, 2, 4)
