"""Every fast sweep equals the reference sweep in value and in all gradients."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.grids import (
    EXACT,
    Case,
    assert_equals_reference,
    random_inputs,
    random_masks,
    tensors_of,
    values_and_gradients,
)
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory
from gridlstm.cells import GRU, Carry, CoupledLSTM, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.engine import buffers, compiled, dispatch, matmul
from gridlstm.engine import wavefront as schedule
from gridlstm.engine.dispatch import SWEEPS, Sweep, SweepName, sweep_named
from gridlstm.engine.half_step import half_step, half_step_fits
from gridlstm.engine.layer_major import layer_major, layer_major_fits
from gridlstm.engine.mkl import PackedWeight
from gridlstm.engine.steps import Step
from gridlstm.engine.wavefront import recomputing_wavefront, wavefront
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.models.grid2d import Grid2d, Grid2dState
from gridlstm.scan import Block, Weights


@dataclass(frozen=True)
class HighwayLSTM(LSTM):
    """A cell without a hand-written gradient, which also reads its own h."""

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        new = super().pointwise(z, h, m)
        return HiddenMemory(new.h + 0.5 * h, new.m)


outputs = st.sampled_from(["paper", "standard"])
any_cell: st.SearchStrategy[Cell] = st.one_of(
    # The cell with a hand-written gradient is the most frequent.
    st.builds(LSTM, outputs, st.booleans(), st.sampled_from([0.0, 1.5])),
    st.builds(LSTM, outputs, st.booleans(), st.sampled_from([0.0, 1.5])),
    st.builds(LSTM, outputs, st.booleans(), st.sampled_from([0.0, 1.5])),
    st.builds(PeepholeLSTM, outputs, st.booleans()),
    st.builds(CoupledLSTM, outputs, st.booleans()),
    st.builds(LayerNormLSTM, outputs),
    st.builds(GRU, st.booleans()),
    st.builds(NonLSTM, st.sampled_from(["identity", "relu", "tanh", torch.nn.functional.silu]), st.booleans()),
    st.sampled_from([HighwayLSTM(), Carry()]),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    N = draw(st.integers(1, 4), label="N")
    longest = {1: 7, 2: 6, 3: 3, 4: 2}[N]
    extents = tuple(draw(st.integers(1, longest)) for _ in range(N))
    order = draw(st.permutations(range(N)))
    cuts = sorted(draw(st.sets(st.integers(1, N - 1)))) if N > 1 else []
    stages = tuple(tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, N], strict=True))
    cells = [draw(any_cell) for _ in range(N)]
    sizes = [draw(st.integers(1, 3)) for _ in range(N)]
    same = []
    for owner, *others in stages:
        for n in others:
            if draw(st.booleans()):
                same.append((n, owner))
                cells[n], sizes[n] = cells[owner], sizes[owner]
    untied = tuple(sorted(draw(st.sets(st.integers(0, N - 1)))))
    masked = tuple(draw(st.sets(st.sampled_from(["keep", "mix", "drop", "select", "select last"]), max_size=2)))
    block = Block(tuple(cells), tuple(sizes), stages, untied, tuple(same))
    return Case(block, extents, draw(st.integers(1, 3), label="B"), masked)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(cases())
def test_fast_sweeps_equal_reference(case: Case) -> None:
    for few, per_row in ((0, 1e9), (10**9, 1e-9)):  # the wavefront packs the weights always, then never
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule, "FEW_ROWS", few)
            patch.setattr(schedule, "PACKED_PER_ROW", per_row)
            assert_equals_reference(wavefront, case)
    assert_equals_reference(recomputing_wavefront, case)
    if layer_major_fits(case.block):
        assert_equals_reference(layer_major, case)
    if half_step_fits(case.block):
        assert_equals_reference(half_step, case)


class Plain:
    """A weight that is not packed, with the methods of ``PackedWeight`` for any type."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def multiply(self, x: Tensor, out: Tensor, add: bool = False) -> None:
        out.copy_(out + x @ self.weight if add else x @ self.weight)


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every wavefront with one weight copy compute its diagonals in pieces of one or two blocks."""
    monkeypatch.setattr(matmul, "SMALL", 0)
    for name in ("SMALL", "MANY_ROWS", "WIDE_ROWS", "PIECE_ROWS"):
        monkeypatch.setattr(schedule, name, 0)
    monkeypatch.setattr(schedule, "PIECE", 200)
    monkeypatch.setattr(schedule, "_start_quickly", lambda pointwise: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(cases())
def test_pieces_of_diagonals_equal_reference(case: Case) -> None:
    case = replace(case, block=replace(case.block, untied=()))
    for size in (1, 200):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule, "PackedWeight", Plain)
            patch.setattr(schedule, "_uses_mkl", lambda layout: True)
            patch.setattr(schedule, "_start_quickly", lambda pointwise: True)
            patch.setattr(schedule, "PIECE_ROWS", 0)
            patch.setattr(schedule, "PIECE", size)
            patch.setattr(torch, "get_num_threads", lambda: 1)
            assert_equals_reference(wavefront, case)
            assert_equals_reference(recomputing_wavefront, case)


@pytest.mark.skipif(not matmul.packed_is_exact(), reason="PyTorch's library has no MKL, or it is not exact here")
@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize(
    "block",
    [
        Block((LSTM(bias=True), LSTM("standard")), (5, 7), ((0, 1),)),
        Block((LSTM(bias=True), LSTM("standard")), (17, 16), ((1,), (0,))),
        Block((LSTM(), GRU(), LSTM(bias=True)), (3, 4, 5), ((0, 2), (1,))),
        Block((LSTM(bias=True), LSTM(bias=True)), (6, 6), ((0, 1),), same=((1, 0),)),
        Block((CoupledLSTM(), PeepholeLSTM()), (1, 2), ((0, 1),)),
    ],
)
@pytest.mark.parametrize("masked", [(), ("keep",), ("mix", "drop"), ("select",)])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("sweep", [wavefront, recomputing_wavefront])
def test_packed_products_equal_reference(
    block: Block, masked: tuple[str, ...], B: int, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of a few hundred terms in float32."""
    packed = 0

    class Counted(PackedWeight):
        def __init__(self, weight: Tensor) -> None:
            nonlocal packed
            packed += 1
            super().__init__(weight)

    monkeypatch.setattr(matmul, "_chosen", "packed")
    monkeypatch.setattr(schedule, "PackedWeight", Counted)
    case = Case(block, (6, 5, 3)[: len(block.cells)], B, masked, scale=0.3)
    assert_equals_reference(sweep, case, torch.empty(0), {"rtol": 1e-4, "atol": 1e-4})
    assert packed == 2 * len(block.stages), "the weights of both passes"
    with torch.no_grad():
        weights, sides = random_inputs(case, torch.empty(0))
        masks = random_masks(case, torch.empty(0))
        alone = sweep(block, weights, sides, case.extents, masks)
    kept = sweep(block, weights, sides, case.extents, masks)
    # Pieces have other rows than whole diagonals. On some processors MKL then adds in another order.
    torch.testing.assert_close(kept, alone, rtol=1e-4, atol=1e-4)


def test_only_compiled_steps_start_quickly_enough_for_pieces() -> None:
    """Plain and joint steps do, those of a cell without a compiled step do not."""
    started = []

    def start_quickly(pointwise: list[Step]) -> bool:
        started.append(original(pointwise))
        return started[-1]

    original = schedule._start_quickly
    for block in (
        Block((LSTM(), LSTM()), (5, 5), ((0, 1),)),
        Block((LSTM(), LSTM()), (5, 5), ((0, 1),), same=((1, 0),)),
        Block((LSTM(), GRU()), (5, 5), ((0, 1),)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule, "_start_quickly", start_quickly)
            case = Case(block, (3, 2), 2)
            wavefront(block, *random_inputs(case, torch.empty(0)), case.extents)
    compiled_steps = compiled.library() is not None
    assert started == [compiled_steps, compiled_steps, False]


@pytest.mark.parametrize("stages", [((0,), (1,)), ((1,), (0,)), ((0, 1),)])
@pytest.mark.parametrize("untied", [(), (1,)])
@pytest.mark.parametrize("per_row", [1e-9, 1e9])  # the wavefront packs the weights never, then always
def test_a_dimension_without_weights_equals_reference(
    per_row: float, untied: tuple[int, ...], stages: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "PACKED_PER_ROW", per_row)
    case = Case(Block((LSTM(), Carry()), (3, 4), stages, untied), (3, 2), 2)
    for sweep in (wavefront, recomputing_wavefront, *((layer_major,) if layer_major_fits(case.block) else ())):
        assert_equals_reference(sweep, case)


@pytest.mark.parametrize("same", [(), ((1, 0),)])
@pytest.mark.parametrize("unpack", [torch.Tensor.double, torch.Tensor.float])
@pytest.mark.parametrize("low", [False, True])
def test_saved_tensors_may_come_back_in_another_precision(
    low: bool, unpack: Callable[[Tensor], Tensor], same: tuple[tuple[int, int], ...]
) -> None:
    case, single = (
        Case(Block((LSTM(bias=True),) * 2, (20, 20), ((0, 1),), same=same), (6, 5), 3, scale=0.1),
        torch.empty(0),
    )
    found = []
    for change in (lambda x: x, unpack):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=low),
            torch.autograd.graph.saved_tensors_hooks(lambda x: x, change),
        ):
            found.append(values_and_gradients(wavefront, case, *random_inputs(case, single)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_large_weights_are_transposed_in_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "LARGE", 0)
    monkeypatch.setattr(schedule, "PACKED_PER_ROW", 10**9)
    assert_equals_reference(wavefront, Case(Block((LSTM(), LSTM()), (3, 3), ((0, 1),)), (4, 3), 2))


@pytest.mark.parametrize("extents", [(1, 1), (1, 5), (5, 1), (2, 5), (5, 2), (9, 3)])
@pytest.mark.parametrize("stages", [((0, 1),), ((0,), (1,)), ((1,), (0,))])
@pytest.mark.parametrize("untied", [(), (1,)])
def test_wavefront_equals_reference_on_time_and_depth(
    extents: tuple[int, ...], stages: tuple[tuple[int, ...], ...], untied: tuple[int, ...]
) -> None:
    case = Case(Block((LSTM(), LSTM()), (3, 3), stages, untied), extents, 2)
    assert_equals_reference(wavefront, case)
    if stages != ((1,), (0,)):
        assert_equals_reference(layer_major, case)
    if len(stages) == 2 and not untied:
        assert_equals_reference(half_step, case)


@pytest.mark.parametrize("stages", [((0, 1),), ((0,), (1,))])
@pytest.mark.parametrize("output", ["paper", "standard"])
def test_hand_written_gradient_against_finite_differences(stages: tuple[tuple[int, ...], ...], output: str) -> None:
    cell = LSTM(output, bias=True)  # type: ignore[arg-type]
    case = Case(Block((cell, cell), (2, 2), stages), (2, 3), 1)
    weights, sides = random_inputs(case)
    flat = tensors_of(weights, sides)

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        out = wavefront(case.block, [Weights(*p) for p in pairs[:2]], [HiddenMemory(*p) for p in pairs[2:]], (2, 3))
        return tuple(x for side in out for x in side)

    # A second backward pass recomputes the gates in one product, with another order of summation.
    assert torch.autograd.gradcheck(run, flat, nondet_tol=1e-12)


def grid_of_two(sweep: str = "wavefront", priority: tuple[str, ...] = ()) -> Grid:
    torch.manual_seed(0)
    dimensions = [Dimension("time", LSTM(bias=True), 3), Dimension("depth", LSTM(bias=True), 3)]
    return Grid(dimensions, priority, sweep=sweep).double()  # type: ignore[arg-type]


def test_whole_sequence_equals_its_pieces_with_carried_state() -> None:
    torch.manual_seed(0)
    model = Grid2d(7, 4, 3, priority="depth").double()
    x = torch.randint(7, (2, 11))
    whole, last = model(x)
    pieces, state = [], None
    for piece in x.split([4, 1, 6], dim=1):
        y, state = model(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, **EXACT)
    torch.testing.assert_close(state, last, **EXACT)


def test_gradient_reaches_the_initial_state_through_all_pieces() -> None:
    torch.manual_seed(0)
    model = Grid2d(7, 4, 3).double()
    x = torch.randint(7, (2, 8))
    gradients = []
    for lengths in ([8], [3, 5]):
        state = Grid2dState(
            torch.ones(3, 2, 4).double().requires_grad_(), torch.ones(3, 2, 4).double().requires_grad_()
        )
        carried = state
        for piece in x.split(lengths, dim=1):
            y, carried = model(piece, carried)
        gradients.append(torch.autograd.grad(y[:, -1].sum(), state))
    assert gradients[0][0].abs().min() > 0
    torch.testing.assert_close(gradients[0], gradients[1], **EXACT)


@pytest.mark.parametrize("priority", [None, "depth", "time"])
def test_output_does_not_depend_on_later_inputs(priority: str | None) -> None:
    torch.manual_seed(0)
    model = Grid2d(4, 3, 3, priority=priority).double()
    x = torch.randn(1, 5, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[0][0], x, vectorize=False)[
        :, :, 0
    ]  # (T, 2d, T, 4)
    depends = jacobian.abs().amax(dim=(1, 3)) > 0  # (T, T): does y_i depend on x_j?
    assert torch.equal(depends, torch.ones(5, 5).tril().bool())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_stays_in_its_batch_row(value: float) -> None:
    grid = grid_of_two(priority=("depth",))

    def run(poison: bool) -> list[Tensor]:
        torch.manual_seed(1)
        sides = [torch.randn(4, 3, 3, dtype=torch.float64) for _ in range(4)]
        if poison:
            sides[2][1, 1] = value  # depth side, step 1, batch row 1
        for side in sides:
            side.requires_grad_()
        out = grid([HiddenMemory(*sides[:2]), HiddenMemory(*sides[2:])], (4, 4))
        values = [x for side in out for x in side]
        return [x[:, [0, 2]] for x in (*values, *torch.autograd.grad([x.sum() for x in values], sides))]

    for poisoned, clean in zip(run(True), run(False), strict=True):
        assert clean.isfinite().all()
        assert torch.equal(poisoned, clean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_second_backward_through_one_graph_repeats_the_first(dtype: torch.dtype) -> None:
    """In double precision both are equal to the bit, as gradcheck requires. In single, the gates are recomputed."""
    grid = grid_of_two().to(dtype)
    sides = [HiddenMemory(*torch.ones(2, 3, 2, 3, dtype=dtype)) for _ in range(2)]
    loss = grid(sides, (3, 3))[0].h.sum()
    parameters = list(grid.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    exact = {"rtol": 0, "atol": 0} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}  # for rounding
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(loss, parameters, retain_graph=True), first, **exact)


def test_recomputed_gates_equal_the_kept_ones() -> None:
    case = Case(Block((LSTM(), HighwayLSTM(bias=True)), (3, 4), ((0,), (1,)), untied=(1,)), (4, 3), 2)
    inputs = random_inputs(case)
    expected = values_and_gradients(wavefront, case, *inputs)
    got = values_and_gradients(recomputing_wavefront, case, *inputs)
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("untied", [(), (1,)])
@pytest.mark.parametrize("sweep", [wavefront, layer_major])
def test_without_gradients_nothing_is_kept_and_the_values_are_the_same(
    sweep: Sweep, untied: tuple[int, ...], dtype: torch.dtype
) -> None:
    case = Case(Block((LSTM(), LSTM()), (20, 20), ((0,), (1,)), untied), (5, 3), 2)
    weights, sides = random_inputs(case)
    weights = [Weights(w.weight.to(dtype), w.bias if w.bias is None else w.bias.to(dtype)) for w in weights]
    sides = [HiddenMemory(h.to(dtype), m.to(dtype)) for h, m in sides]
    kept = sweep(case.block, weights, sides, case.extents, None)
    with torch.no_grad():
        alone = sweep(case.block, weights, sides, case.extents, None)
    assert all(torch.equal(a, b) for x, y in zip(kept, alone, strict=True) for a, b in zip(x, y, strict=True))
    assert kept[0].h.grad_fn is not None
    assert alone[0].h.grad_fn is None


def saved_numbers(sweep: Sweep, extents: tuple[int, int], d: int) -> int:
    """Count the numbers that are kept between the passes, except the weights and the sides."""
    case = Case(Block((LSTM(), LSTM()), (d, d), ((0, 1),)), extents, 2)
    weights, sides = random_inputs(case)
    function = sweep(case.block, weights, sides, extents)[0].h.grad_fn
    assert function is not None
    held = function.saved_tensors  # type: ignore[attr-defined]
    given = {x.data_ptr() for x in (*tensors_of(weights, sides), *(w.bias for w in weights)) if x is not None}
    return sum(x.numel() for x in held if x is not None and x.data_ptr() not in given)


def test_saved_activations_are_as_documented() -> None:
    T, L, d, B = 12, 10, 4, 2
    exits = max(T, L) * B * 2 * (2 * d)  # rows for the outputs of the grid
    assert saved_numbers(wavefront, (T, L), d) == T * L * B * 6 * (2 * d) + exits
    assert saved_numbers(recomputing_wavefront, (T, L), d) == T * L * B * 2 * (2 * d) + exits


def test_second_derivative_is_refused_in_one_sentence() -> None:
    grid = grid_of_two()
    sides = [HiddenMemory(*torch.ones(2, 2, 1, 3, dtype=torch.float64)) for _ in range(2)]
    loss = grid(sides, (2, 2))[0].h.sum()
    with pytest.raises(UserError, match="Use sweep=reference"):
        torch.autograd.grad(loss, list(grid.parameters()), create_graph=True)


@pytest.mark.parametrize("stages", [((0, 1, 2),), ((0, 2), (1,)), ((2,), (1,), (0,))])
def test_any_cell_is_differentiated(stages: tuple[tuple[int, ...], ...]) -> None:
    block = Block((HighwayLSTM(bias=True), LSTM(), HighwayLSTM()), (2, 3, 2), stages, untied=(1,))
    assert_equals_reference(wavefront, Case(block, (3, 2, 2), 2))


@pytest.mark.parametrize(
    ("shapes", "extents", "message"),
    [
        ([(2, 1, 3), (2, 1, 3)], (3, 2), r"side 1: expected h of shape \(3, 1, 3\)"),
        ([(2, 1, 4), (3, 1, 3)], (3, 2), r"side 0: expected h of shape \(2, 1, 3\).*got \(2, 1, 4\)"),
        ([(2, 1, 3)], (3, 2), "expected 2 sides and 2 extents"),
        ([(0, 1, 3), (3, 1, 3)], (3, 0), "extents of at least 1"),
    ],
)
def test_sides_that_do_not_fit_are_refused(
    shapes: list[tuple[int, ...]], extents: tuple[int, ...], message: str
) -> None:
    sides = [HiddenMemory(torch.zeros(shape).double(), torch.zeros(shape).double()) for shape in shapes]
    with pytest.raises(UserError, match=message):
        grid_of_two()(sides, extents)


def test_unknown_sweep_is_refused() -> None:
    with pytest.raises(UserError, match=r"sweep must be one of auto, reference, wavefront, .*, half-step, got 'fast'"):
        grid_of_two(sweep="fast")


@pytest.mark.parametrize(
    ("untied", "extents", "size", "B", "expected"),
    [
        ((), (20, 6), 500, 50, "wavefront"),
        ((1,), (20, 6), 500, 50, "layer-major"),
        ((1,), (20, 6), 500, 1, "layer-major"),
        ((1,), (8, 10), 32, 1, "wavefront"),  # layer-major would wait for steps that are too small
        ((0,), (20, 6), 500, 50, "wavefront"),  # layer-major cannot be used
        ((2,), (14, 14, 4), 100, 32, "layer-major"),
    ],
)
def test_the_sweep_is_picked_by_shape(
    untied: tuple[int, ...],
    extents: tuple[int, ...],
    size: int,
    B: int,
    expected: SweepName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "needs_plain_ops", lambda like: False)
    block = Block((LSTM(),) * len(extents), (size,) * len(extents), (tuple(range(len(extents))),), untied)
    assert sweep_named("auto", block, extents, torch.empty(0, B, size, device="cpu")) is SWEEPS[expected]
    if expected == "layer-major":
        assert sweep_named("auto", block, extents, like_gpu(B, size)) is SWEEPS["wavefront"]


def like_gpu(B: int, size: int) -> Tensor:
    """Return a tensor on a device of unknown speed, which is assumed to be as fast as a GPU."""
    return torch.empty(0, B, size, device="meta")


@pytest.mark.parametrize("block", [(400, False), (400, True), (16, True)])
def test_unmeasured_device_uses_the_wavefront_sweep(monkeypatch: pytest.MonkeyPatch, block: tuple[int, bool]) -> None:
    monkeypatch.setattr(dispatch, "needs_plain_ops", lambda like: False)
    size, untied = block
    priority = Block((LSTM(), LSTM()), (size, size), ((0,), (1,)), (1,) if untied else ())
    assert sweep_named("auto", priority, (49, 18), like_gpu(15, size)) is SWEEPS["wavefront"]


def test_half_step_sweep_refuses_single_stage_grids() -> None:
    """The grid refuses them at construction. A sweep of jobs constructs all networks before it starts any job."""
    with pytest.raises(UserError, match="sweep=half-step needs two stages"):
        grid_of_two(sweep="half-step")
