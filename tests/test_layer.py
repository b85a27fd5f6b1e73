"""GridLSTM can be used like torch.nn.LSTM."""

import copy
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from gridlstm import GridLSTM
from gridlstm.cell import LSTM, Cell, HiddenMemory
from gridlstm.cells import GRU, Highway, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.layer import GridLSTMState
from gridlstm.models.grid2d import Grid2d
from gridlstm.models.min_gru import MinGRU
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.regularizers import Dropout, FrameDropout, Regularizer, Zoneout


def layer(**options: Any) -> GridLSTM:
    torch.manual_seed(0)
    return GridLSTM(5, 4, 3, **options)


def test_shapes_equal_those_of_nn_lstm() -> None:
    x = torch.randn(7, 2, 5)  # (T, B, input_size)
    output, state = layer()(x)
    assert output.shape == nn.LSTM(5, 4, 3)(x)[0].shape == (7, 2, 4)
    assert [tuple(v.shape) for v in state.time] == [(3, 2, 4)] * 2
    assert state.depth is not None
    assert [tuple(v.shape) for v in state.depth] == [(7, 2, 4)] * 2
    first, _ = layer(batch_first=True)(x.transpose(0, 1))
    assert torch.equal(first.transpose(0, 1), output)
    single, single_state = layer()(x[:, 0])
    torch.testing.assert_close(single, output[:, 0], rtol=1e-5, atol=1e-6)  # float32 products of other shapes
    assert single_state.time.h.shape == (3, 4)
    torch.testing.assert_close(layer()(x[:, 0], single_state)[0], layer()(x[:, :1], _slice(state))[0][:, 0])


def _slice(state: GridLSTMState) -> GridLSTMState:
    return GridLSTMState(HiddenMemory(*(v[:, :1] for v in state.time)))


@pytest.mark.parametrize("sweep", ["auto", "reference", "recompute", "wavefront"])
@pytest.mark.parametrize("time", [LSTM(bias=True), PeepholeLSTM()])
def test_a_batch_may_be_empty(sweep: SweepName, time: LSTM) -> None:
    """The last batch of a rank may have no rows, and torch.nn.LSTM accepts that too."""
    model, x = layer(sweep=sweep, time=time), torch.zeros(7, 0, 5)
    output, state = model(x)
    assert output.shape == nn.LSTM(5, 4, 3)(x)[0].shape == (7, 0, 4)
    assert state.time.h.shape == (3, 0, 4)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("batch_first", [False, True])
def test_changing_the_output_in_place_changes_neither_state_nor_gradient(batch_first: bool) -> None:
    model, x = layer(batch_first=batch_first), torch.randn(7, 2, 5)
    gradients = []
    for in_place in (False, True):
        output, state = model(x)
        assert state.depth is not None
        before = state.depth.h.clone()
        output = output.mul_(3) if in_place else output * 3
        assert torch.equal(state.depth.h, before)
        gradients.append(torch.autograd.grad(output.sum() + state.depth.h.square().sum(), list(model.parameters())))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("sweep", ["auto", "reference"])
def test_transforms_of_two_data_types_raise(sweep: Any, part: str) -> None:
    """Otherwise copying them into one buffer would silently convert them."""
    grid, x = layer(sweep=sweep), torch.randn(7, 2, 5)
    parameter = grid.grid.transforms["depth"].get_parameter(part)
    parameter.data = parameter.data.double()
    words = rf"expected the {part} of dimension 'depth' of type torch\.float32 like the weights, got torch\.float64"
    with pytest.raises(UserError, match=words):
        grid(x)
    stacked = StackedLSTM(5, 4, 3, time=LSTM(bias=True), sweep=sweep)
    parameter = stacked.layers.get_parameter(part)
    parameter.data = parameter.data.double()
    with pytest.raises(UserError, match=f"expected the {part} of the layers of type"):
        stacked(x)


def test_state_continues_a_sequence() -> None:
    x = torch.randn(7, 2, 5).double()
    model = layer(priority="depth").double()
    whole, last = model(x)
    first, state = model(x[:3])
    second, end = model(x[3:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(end.time, last.time, rtol=0, atol=1e-12)


def test_a_detached_state_continues_the_sequence_without_its_gradient() -> None:
    x, model = torch.randn(7, 2, 5, requires_grad=True), layer()
    whole, _ = model(x)
    _, state = model(x[:4])
    second, _ = model(x[4:], state.detach())
    torch.testing.assert_close(second, whole[4:])
    (gradient,) = torch.autograd.grad(second.sum(), x)
    assert gradient[:4].count_nonzero() == 0
    assert gradient[4:].count_nonzero() > 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(5),
            r"expected x of shape \(T, B, input_size\) or \(T, input_size\) with input_size=5.*got \(5,\)",
        ),
        (torch.zeros(7, 2, 6), "input_size=5"),
        (torch.zeros(0, 2, 5), "at least one step"),
        (torch.zeros(7, 2, 5).double(), "expected x of type torch.float32 like the weights, got torch.float64"),
        (torch.zeros(7, 2, 5, device="meta"), "expected x on cpu like the weights, got meta"),
    ],
)
def test_invalid_input_raises(x: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer()(x)


@pytest.mark.parametrize(
    ("h", "message"),
    [
        (torch.zeros(2, 2, 4), r"time.h of shape \(3, 2, 4\), got \(2, 2, 4\)"),
        (torch.zeros(3, 2, 4).double(), "time.h as torch.float32"),
    ],
)
def test_invalid_state_raises(h: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer()(torch.zeros(7, 2, 5), GridLSTMState(HiddenMemory(h, h)))


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be a whole number of at least 1, got 0"):
        GridLSTM(**{"input_size": 1, "hidden_size": 1, "num_layers": 1, name: 0})


def test_copies_and_state_dicts_compute_the_same() -> None:
    x, model = torch.randn(4, 2, 5), layer()
    expected = model(x)[0]
    assert torch.equal(copy.deepcopy(model)(x)[0], expected)
    other = GridLSTM(5, 4, 3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x)[0], expected)
    parameters = dict(model.named_parameters())
    output, _ = torch.func.functional_call(other, parameters, (x,))
    assert torch.equal(output, expected)
    assert set(parameters) == {
        "input.weight",
        *(f"grid.transforms.{n}.{part}" for n in ("time", "depth") for part in ("weight", "bias")),
    }


def test_function_transforms_use_the_reference_sweep() -> None:
    x, model = torch.randn(3, 1, 5).double(), layer().double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,))[0].sum()

    gradients = torch.func.grad(loss)(parameters)
    expected = torch.autograd.grad(model(x)[0].sum(), list(model.parameters()))
    torch.testing.assert_close(list(gradients.values()), list(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GridLSTM(5, 4, 2),
        lambda: StackedLSTM(5, 4, 2),
        lambda: StackedLSTM(5, 4, 2, time=LSTM("standard")),
        lambda: MinGRU(5, 4, 2),
    ],
)
def test_forward_mode_derivatives_equal_reverse_mode(make: Any) -> None:
    model = make().double()
    x, direction = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    y = model(x.requires_grad_())[0]
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    with forward_ad.dual_level():
        _, derivative = forward_ad.unpack_dual(model(forward_ad.make_dual(x.detach(), direction))[0])
    assert derivative is not None
    torch.testing.assert_close((derivative * weights).sum(), (gradient * direction).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tied", [True, False])
def test_autocast_does_not_change_double_precision(tied: bool) -> None:
    grid = layer(tied=tied, sweep="wavefront").double()
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    expected = grid(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(grid(x)[0], expected)


def test_tracers_record_plain_operations() -> None:
    grid = layer().requires_grad_(False)
    x, other = torch.randn(2, 6, 2, 5)
    with torch.no_grad():
        expected = grid(other)[0]
        recorded = make_fx(lambda x: grid(x)[0])(x)
        torch.testing.assert_close(recorded(other), expected)


@pytest.mark.parametrize("sweep", ["auto", "wavefront", "recompute", "layer-major"])
def test_shapes_can_be_computed_on_the_meta_device(sweep: SweepName) -> None:
    lengths = torch.tensor([1, 6])
    with torch.device("meta"):
        assert GridLSTM(5, 4, 3, sweep=sweep)(torch.randn(6, 2, 5), None, lengths)[0].shape == (6, 2, 4)
    grid, x = layer(sweep=sweep), torch.randn(37, 2, 5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert grid(x)[0].shape == (37, 2, 4)
    assert grid(x)[0].isfinite().all(), "a real input must still give real outputs afterwards"


def test_a_layer_prints_its_sizes_and_cells() -> None:
    text = str(GridLSTM(5, 4, 3, tied=["depth"], priority="depth", dropout=0.2, time_regularizers=[Dropout(0.1)]))
    for part in (
        "5, 4, num_layers=3",
        "priority=('depth',)",
        "dropout=0.2",
        "Dropout(p=0.1)",
        "LSTM(output='paper', bias=True, forget_bias=1.0, gain=1.0), weight=(3, 16, 8)",
        "weight=(16, 8)",
    ):
        assert part in text


def test_an_exported_program_can_be_saved() -> None:
    grid, x, file = layer(), torch.randn(6, 2, 5), io.BytesIO()
    torch.export.save(torch.export.export(grid, (x,)), file)
    file.seek(0)
    output, state = torch.export.load(file).module()(x)
    torch.testing.assert_close(output, grid(x)[0])
    assert isinstance(state, GridLSTMState)


@pytest.mark.parametrize("noise", [Dropout(0.5), Zoneout(0.5, 0.5)])
def test_a_layer_with_noise_can_be_exported(noise: Regularizer) -> None:
    x = torch.randn(6, 2, 5)
    program = torch.export.export(layer(time_regularizers=[noise]), (x,)).module()
    assert not torch.equal(program(x)[0], program(x)[0]), "every call draws its own masks"


def test_an_exported_program_draws_with_the_same_probability() -> None:
    """Zoneout of m alone keeps m = 0 with probability 0.1."""
    grid, x = GridLSTM(5, 500, 1, time_regularizers=[Zoneout(0.0, 0.1)]), torch.randn(1, 40, 5)
    program = torch.export.export(grid, (x,)).module()
    kept = (program(x)[1].time.m == 0).double().mean().item()
    assert kept == pytest.approx(0.1, abs=0.015)  # 20,000 draws: standard error 0.002


def test_lengths_of_a_single_sequence_are_refused() -> None:
    with pytest.raises(UserError, match="lengths belong to a padded batch"):
        layer()(torch.randn(4, 5), lengths=torch.tensor([4]))


def test_a_sweep_that_is_set_later_is_checked() -> None:
    grid = layer()
    grid.grid.sweep = "bogus"  # type: ignore[assignment]
    with pytest.raises(UserError, match="sweep must be one of"):
        grid(torch.randn(4, 2, 5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LSTM(bias="false"), "bias must be true or false, got 'false'"),  # type: ignore[arg-type]
        (lambda: LSTM(forget_bias=float("nan")), "forget_bias must be a finite number, got nan"),
        (lambda: LSTM(forget_bias=None), "forget_bias must be a finite number, got None"),  # type: ignore[arg-type]
        (lambda: LSTM(gain="1"), "gain must be above 0 and finite, got '1'"),  # type: ignore[arg-type]
        (lambda: GRU(bias=3), "bias must be true or false, got 3"),  # type: ignore[arg-type]
        (lambda: Highway(gate_bias="x"), "gate_bias must be a finite number, got 'x'"),  # type: ignore[arg-type]
        (lambda: Dropout("0.5"), r"dropout p must be a probability in \[0, 1\), got '0.5'"),  # type: ignore[arg-type]
        (lambda: FrameDropout(((5, 0.5),)), "rising shares from 0 to 1"),
        (lambda: layer(dropout=None), r"dropout must be a probability in \[0, 1\), got None"),
        (lambda: layer(batch_first="no"), "batch_first must be true or false, got 'no'"),
        (lambda: layer(shared="yes"), "shared must be true or false, got 'yes'"),
        (lambda: layer(time_regularizers=[0.5]), "the noise on dimension 'time' must be of class"),
        (lambda: layer(time_regularizers=Dropout(0.1)), "time_regularizers must be a list of regularizers"),
    ],
)
def test_arguments_of_wrong_types_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize("sweep", ["wavefront", "layer-major", "recompute"])
def test_gradients_do_not_depend_on_the_strides_that_hooks_return(sweep: SweepName) -> None:
    """Products of transposed weights may round differently."""
    grid, x = layer(sweep=sweep), torch.randn(6, 2, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(grid(x)[0].sum(), x)

    def other_strides(saved: Tensor) -> Tensor:
        return saved.mT.contiguous().mT if saved.dim() > 1 else saved

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, other_strides):
        (found,) = torch.autograd.grad(grid(x)[0].sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GridLSTM(5, 4, 3),
        lambda: GridLSTM(5, 4, 3, tied=True, priority="depth", sweep="half-step"),
        lambda: GridLSTM(5, 4, 3, sweep="recompute"),
        lambda: StackedLSTM(5, 4, 3),
    ],
)
def test_activation_checkpointing_saves_nothing_and_changes_no_gradient(make: Any) -> None:
    grid, x = make().double(), torch.randn(6, 2, 5, dtype=torch.float64, requires_grad=True)
    wanted = [x, *grid.parameters()]
    expected = torch.autograd.grad(grid(x)[0].sum(), wanted)
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: held.append(saved.numel()) or saved, lambda saved: saved
    ):
        output = checkpoint(lambda x: grid(x)[0], x, use_reentrant=False)
    for _ in range(2):  # the second pass recomputes the gates, with another order of summation
        torch.testing.assert_close(torch.autograd.grad(output.sum(), wanted, retain_graph=True), expected)
    assert sum(held) <= x.numel()


@pytest.mark.parametrize("make", [lambda: GridLSTM(5, 4, 3), lambda: StackedLSTM(5, 4, 3)])
def test_frozen_weights_get_no_gradient(make: Any) -> None:
    network, x = make().double(), torch.randn(6, 2, 5, dtype=torch.float64, requires_grad=True)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            network(x)[0].sum().backward()
        return int(counter.get_total_flops())

    trained, expected = flops(), x.grad
    network.requires_grad_(False)
    x.grad = None
    frozen = flops()
    assert frozen < 0.8 * trained
    torch.testing.assert_close(x.grad, expected)


def test_batched_gradients_raise_and_name_a_sweep_that_supports_them() -> None:
    x = torch.randn(3, 1, 5)
    with pytest.raises(UserError, match=r"have no batched gradients .* Use sweep=reference"):
        torch.autograd.functional.jacobian(lambda x: GridLSTM(5, 4, 2)(x)[0], x, vectorize=True)
    grid = GridLSTM(5, 4, 2, sweep="reference")
    found = torch.autograd.functional.jacobian(lambda x: grid(x)[0], x, vectorize=True)
    torch.testing.assert_close(found, torch.autograd.functional.jacobian(lambda x: grid(x)[0], x))


def test_vectors_of_another_type_use_plain_operations() -> None:
    """The compiled step reads only float32. Gains of 1 and shifts of 0 are exact in half precision."""
    grid = GridLSTM(5, 8, 2, time=LayerNormLSTM(), depth=LayerNormLSTM())
    x = torch.randn(6, 2, 5)
    expected = grid(x)[0]
    grid.grid.transforms["time"].vectors.half()
    torch.testing.assert_close(grid(x)[0], expected)


@pytest.mark.parametrize("tied", [True, False])
def test_autocast_lowers_only_products(tied: bool) -> None:
    x, model = torch.randn(6, 3, 5), layer(tied=tied)
    expected = [model(x)[0]]
    expected += torch.autograd.grad(expected[0].square().sum(), list(model.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = model(x)
    got = [output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))]
    assert state.time.m.dtype == torch.float32
    for low, full in zip(got, expected, strict=True):
        assert low.dtype == torch.float32
        assert not torch.equal(low, full)  # products were computed in bfloat16
        # bfloat16 has 8 bits of mantissa: each product has an error of up to 2^-9, and errors add up over 18 blocks.
        assert (low - full).norm() < 0.03 * full.norm()


def test_factors_of_dropout_are_not_rounded_by_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """With p = 0.3 the kept elements are multiplied by 1 / 0.7 = 1.42857, which bfloat16 rounds to 1.4297."""
    model = layer(dropout=0.3)
    factors: list[Tensor] = []
    drop = torch.nn.functional.dropout

    def kept(x: Tensor, *options: Any) -> Tensor:
        factors.append(drop(torch.ones_like(x), *options))
        return drop(x, *options)

    monkeypatch.setattr(torch.nn.functional, "dropout", kept)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(6, 3, 5))
    assert len(factors) == 2
    for factor in factors:
        torch.testing.assert_close(factor.double().max(), torch.tensor(1 / 0.7).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_types_that_autocast_does_not_change_raise(dtype: torch.dtype) -> None:
    x = torch.zeros(7, 2, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match=f"like the weights, got {dtype}"):
        layer()(x)


@pytest.mark.parametrize("sweep", ["auto", "reference"])
def test_autocast_keeps_the_state_of_every_cell_in_float32(sweep: SweepName) -> None:
    model, x = layer(time=NonLSTM("tanh"), sweep=sweep), torch.randn(6, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = model(x)
        output, state = model(x, state)
    assert output.dtype == state.time.h.dtype == torch.float32


def test_export_keeps_the_numbers() -> None:
    x, model = torch.randn(3, 2, 5), layer(depth=GRU(), tied=True)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x)[0], model(x)[0], rtol=1e-5, atol=1e-6)


def test_export_accepts_other_lengths() -> None:
    x, model = torch.randn(4, 2, 5), layer()
    exported = torch.export.export(model, (x, None, torch.tensor([1, 4]))).module()
    lengths = torch.tensor([3, 2])
    torch.testing.assert_close(exported(x, None, lengths)[0], model(x, None, lengths)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the tracer is deprecated
@pytest.mark.parametrize("cell", [LSTM(), GRU()])
def test_a_grid_of_fixed_extents_can_be_traced(cell: Cell) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = Grid([Dimension("a", cell, 3), Dimension("b", cell, 3)])

        def forward(self, h: Tensor) -> Tensor:
            side = HiddenMemory(h, h[..., : cell.memory_size(3)])
            return self.grid([side, side], (2, 2))[0].h

    model = Fixed()
    traced = torch.jit.trace(model, (torch.randn(2, 1, 3),))
    for h in (torch.randn(2, 1, 3), torch.randn(2, 1, 3)):
        torch.testing.assert_close(traced(h), model(h), rtol=0, atol=1e-6)
    traced(h).sum().backward()


@pytest.mark.filterwarnings("ignore")  # the tracer is deprecated
@pytest.mark.parametrize(
    "make", [lambda: GridLSTM(5, 4, 3), lambda: GridLSTM(5, 4, 3, sweep="reference"), lambda: StackedLSTM(5, 4, 3)]
)
def test_tracing_a_dynamic_number_of_steps_raises(make: Any) -> None:
    model, x = make(), torch.randn(2, 4, 5)
    words = r"a traced program unrolls all blocks and steps\. Expected fixed numbers of them, got .* torch\.export"
    with pytest.raises(UserError, match=words):
        torch.jit.trace(model, (x,))
    with pytest.raises(UserError, match=words):
        torch.export.export(model, (x,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.STATIC},))


def test_export_accepts_other_batch_sizes() -> None:
    model = GridLSTM(5, 4, 2)
    exported = torch.export.export(model, (torch.randn(2, 2, 5),), dynamic_shapes=({1: Dim.DYNAMIC},)).module()
    x = torch.randn(2, 7, 5)
    torch.testing.assert_close(exported(x)[0], model(x)[0], rtol=1e-5, atol=1e-6)


def test_compiling_with_fullgraph_needs_the_reference_sweep() -> None:
    x = torch.randn(6, 6, 5)
    for model in (GridLSTM(5, 4, 2), StackedLSTM(5, 4, 2)):
        with pytest.raises(torch._dynamo.exc.Unsupported, match="Remove fullgraph, or use sweep=reference"):
            torch.compile(model, fullgraph=True, backend="eager")(x)
    plain = GridLSTM(5, 4, 2, sweep="reference")
    torch.testing.assert_close(torch.compile(plain, fullgraph=True, backend="eager")(x), plain(x))


def test_a_compiled_caller_runs_the_backward_pass_uncompiled() -> None:
    """The backward pass fills buffers in place, partly in fused.c. Compiling it in pieces is slow and of no use."""
    counter, loss = CompileCounter(), layer()(torch.randn(3, 2, 5))[0].sum()
    torch.compile(lambda: loss.backward(), backend=counter)()
    assert counter.frame_count == 0


@pytest.mark.slow
def test_compile_around_the_layer() -> None:
    x, model = torch.randn(3, 2, 5), layer()
    compiled = torch.compile(lambda x: model(2 * x)[0].square().sum())
    torch.testing.assert_close(compiled(x), model(2 * x)[0].square().sum(), rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(compiled(x), list(model.parameters()))
    expected = torch.autograd.grad(model(2 * x)[0].square().sum(), list(model.parameters()))
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("page", ["README.md", "docs/layer.md"])
def test_example_of_a_page_runs(page: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / page).read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec("".join(examples), names)
    assert names["output"].shape == (8, 100, 64)
    if page == "docs/layer.md":
        assert names["depth"].h.shape == (5, 6, 8, 16)


def test_the_layer_learns_to_repeat_the_previous_input() -> None:
    torch.manual_seed(0)
    model = GridLSTM(1, 16, 2, batch_first=True, time=LSTM(bias=True), tied=True)
    head = nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.01)
    x = torch.randn(64, 8, 1)
    target = x.roll(1, dims=1)  # the previous input
    losses = []
    for _ in range(150):
        error = (head(model(x)[0]) - target)[:, 1:].square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < 0.1 * losses[0]


def test_arguments_with_another_meaning_in_nn_lstm_raise() -> None:
    layer = GridLSTM(3, 4, 2)
    x = torch.randn(5, 2, 3)
    with pytest.raises(TypeError, match="positional"):
        GridLSTM(3, 4, 2, False)  # type: ignore[misc]
    with pytest.raises(UserError, match="tied must be true, false or a list of time and depth, got 'depth'"):
        GridLSTM(3, 4, 2, tied="depth")
    with pytest.raises(UserError, match="input_size must be a whole number"):
        GridLSTM("3", 4)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"The \(h, c\) of torch\.nn\.LSTM"):
        layer(x, (torch.zeros(2, 2, 4), torch.zeros(2, 2, 4)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pad_packed_sequence"):
        layer(torch.nn.utils.rnn.pack_padded_sequence(x, [5, 4]))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"priority": "depth"}, {"time": GRU()}, {"batch_first": True, "tied": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padded_batch_equals_its_rows_run_separately(options: dict[str, Any], dtype: torch.dtype) -> None:
    model, lengths = layer(**options).to(dtype), torch.tensor([7, 1, 4])
    x = torch.randn(3, 7, 5, dtype=dtype)
    x[1, 1:] = float("nan")  # padding must have no effect
    time_first = not options.get("batch_first")

    def run(rows: Tensor, *rest: Any) -> tuple[Tensor, GridLSTMState]:
        y, state = model(rows.transpose(0, 1) if time_first else rows, *rest)
        return y.transpose(0, 1) if time_first else y, state

    output, state = run(x, None, lengths)
    gradients = torch.autograd.grad(output.sum() + state.time.h.sum(), list(model.parameters()))
    total = [torch.zeros_like(p) for p in model.parameters()]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    for row, length in enumerate(lengths.tolist()):
        y, own = run(x[row : row + 1, :length])
        torch.testing.assert_close(output[row : row + 1, :length], y, **tolerance)
        assert output[row, length:].eq(0).all()
        for got, expected in zip(state.time, own.time, strict=True):
            torch.testing.assert_close(got[:, row : row + 1], expected, **tolerance)
        for sum_, gradient in zip(
            total, torch.autograd.grad(y.sum() + own.time.h.sum(), list(model.parameters())), strict=True
        ):
            sum_ += gradient
    torch.testing.assert_close(list(gradients), total, **tolerance)


@pytest.mark.parametrize(
    "lengths",
    [
        torch.tensor([1, 8]),
        torch.tensor([0, 3]),
        torch.tensor([3]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1, 2], dtype=torch.uint16),
        torch.tensor([1, 2], dtype=torch.complex64),
        torch.tensor([True, True]),
        [1, 2],
    ],
)
def test_invalid_lengths_raise(lengths: Any) -> None:
    with pytest.raises(UserError, match="lengths as whole numbers from 1 to T=7, one for each of the 2 rows"):
        layer()(torch.zeros(7, 2, 5), None, lengths)


def test_a_state_may_be_plain_tuples() -> None:
    """Generic code that detaches states returns plain tuples."""

    def detached(state: Any) -> Any:
        return state.detach() if isinstance(state, Tensor) else tuple(detached(each) for each in state)

    grid, x = layer(), torch.randn(7, 2, 5)
    state = grid(x)[1]
    torch.testing.assert_close(grid(x, detached(state)), grid(x, state))


def test_vectors_on_the_meta_device_raise() -> None:
    """Otherwise the compiled step would read memory that does not exist."""

    def make() -> GridLSTM:
        return GridLSTM(5, 8, 2, time=LayerNormLSTM(), depth=LayerNormLSTM())

    with torch.device("meta"):
        grid = make()
    here = {name: x for name, x in make().state_dict().items() if "vectors" not in name}
    grid.load_state_dict(here, strict=False, assign=True)
    with pytest.raises(RuntimeError):
        grid(torch.randn(6, 2, 5))


def test_a_saved_state_loads_with_weights_only() -> None:
    file, grid, x = io.BytesIO(), layer(), torch.randn(6, 2, 5)
    state = grid(x)[1]
    torch.save({"weights": grid.state_dict(), "state": state}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["state"]
    assert isinstance(loaded, GridLSTMState)
    assert isinstance(loaded.time, HiddenMemory)
    assert torch.equal(grid(x, loaded)[0], grid(x, state)[0])


def test_an_invalid_cell_raises() -> None:
    with pytest.raises(UserError, match=r"depth must be a cell, such as gridlstm\.cell\.LSTM\(\), got 'lstm'"):
        GridLSTM(3, 4, depth="lstm")  # type: ignore[arg-type]


def test_gradcheck_of_the_default_layer() -> None:
    layer = GridLSTM(3, 4, 2).double()
    assert torch.autograd.gradcheck(
        lambda x: layer(x)[0], torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"tied": True},
        {"tied": ["depth"], "priority": "depth"},
        {"tied": False, "shared": True, "dropout": 0.4},
        {"tied": True, "time_regularizers": [Zoneout(0.2, 0.3)], "depth_regularizers": [Dropout(0.2)]},
    ],
)
def test_the_layer_and_the_model_compute_the_same(options: dict[str, Any]) -> None:
    """The two differ only in input and output: the model's output includes the memory of the top layer."""
    cell, x = LSTM(bias=True), torch.randn(2, 5, 3)
    layer = GridLSTM(3, 4, 2, batch_first=True, time=cell, depth=cell, **options)
    model = Grid2d(3, 4, 2, time=cell, depth=cell, **options)
    model.grid.load_state_dict(layer.grid.state_dict())
    with torch.no_grad():
        model.input.weight.copy_(layer.input.weight.t())
    torch.manual_seed(7)
    output, state = layer(x)
    torch.manual_seed(7)
    y, last = model(x)
    assert state.depth is not None
    torch.testing.assert_close(y, torch.cat([output, state.depth.m.transpose(0, 1)], dim=-1))
    torch.testing.assert_close(last.h, state.time.h)
