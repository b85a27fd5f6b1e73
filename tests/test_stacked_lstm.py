"""The stacked LSTM: its loop against nn.LSTM, and the kernel of nn.LSTM against the loop."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gridlstm.cell import LSTM, Cell, HiddenMemory
from gridlstm.cells import GRU, CoupledLSTM, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.engine.chain import chain, reference_chain
from gridlstm.engine.dispatch import ChainName
from gridlstm.errors import UserError
from gridlstm.models.base import SequenceModel
from gridlstm.models.min_gru import MinGRU
from gridlstm.models.stacked_lstm import StackedLSTM, StackedLSTMState
from gridlstm.scan import Weights

# Both sides compute in float64, with different orders of summation.
EXACT = {"rtol": 0.0, "atol": 1e-12}


class Looped(LSTM):
    """The same cell as another class, which has no kernel."""


def network(cell: Cell, tied: bool = False, dropout: float = 0.0, sweep: ChainName = "auto") -> StackedLSTM:
    torch.manual_seed(0)
    model = StackedLSTM(5, 4, 3, time=cell, tied=tied, dropout=dropout, sweep=sweep).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


def results(model: StackedLSTM) -> list[Tensor]:
    """Return the output, the state and all gradients."""
    torch.manual_seed(1)
    x, state = torch.randint(5, (2, 7)), StackedLSTMState(*torch.randn(2, 3, 2, 4).double().requires_grad_())
    y, end = model(x, state)
    loss = (y * torch.randn_like(y)).sum() + end.h.square().sum() + end.m.sum()
    return [y, *end, *torch.autograd.grad(loss, [*state, *model.parameters()])]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bias", "forget_bias"), [(True, 1.0), (False, 1.0), (False, 0.0)])
def test_kernel_equals_loop_in_value_and_gradient(bias: bool, forget_bias: float, tied: bool) -> None:
    kernel = results(network(LSTM("standard", bias, forget_bias), tied))
    loop = results(network(Looped("standard", bias, forget_bias), tied))
    for a, b in zip(kernel, loop, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bias", "forget_bias"), [(True, 1.0), (False, 1.0), (False, 0.0)])
def test_fast_loop_equals_plain_loop_in_value_and_gradient(bias: bool, forget_bias: float, tied: bool) -> None:
    fast = results(network(LSTM("paper", bias, forget_bias), tied))
    plain = results(network(LSTM("paper", bias, forget_bias), tied, sweep="reference"))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_fast_loop_carries_the_gradient_of_vectors() -> None:
    torch.manual_seed(0)
    cell, d, e = LayerNormLSTM(), 4, 3
    weight, x, h, m = (torch.randn(*shape).double() for shape in ((4 * d, e + d), (7, 2, e), (2, d), (2, d)))
    vectors = [torch.randn(length).double() for length in cell.vector_lengths(d).values()]
    leaves = [t.requires_grad_() for t in (weight, x, h, m, *vectors)]
    results = []
    for run in (chain, reference_chain):
        outputs, last = run(cell, Weights(weight, None, tuple(vectors)), x, HiddenMemory(h, m))
        loss = outputs.square().sum() + last.h.sum() + last.m.square().sum()
        again = torch.autograd.grad(loss, leaves, retain_graph=True)
        results.append([outputs, *last, *again, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("cell", [LSTM(), LayerNormLSTM()])
def test_fast_loop_in_single_precision_equals_plain_loop_in_double(cell: Cell) -> None:
    """In single precision, the pointwise step is compiled C."""
    model, exact = network(cell).float(), network(cell, sweep="reference")
    x = torch.randint(5, (2, 7))
    for a, b in ((model, x), (exact, x)):
        a(b)[0].square().sum().backward()
    torch.testing.assert_close(model(x)[0].double(), exact(x)[0], rtol=0, atol=1e-6)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=0, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("cell", "dtype"), [(LSTM(), torch.float32), (LSTM(), torch.float64), (LayerNormLSTM(), torch.float32)]
)
def test_fast_loop_can_go_back_twice_but_not_be_differentiated_twice(cell: Cell, dtype: torch.dtype) -> None:
    model, x = network(cell).to(dtype), torch.randint(5, (2, 7))
    loss = model(x)[0].square().sum()
    first = torch.autograd.grad(loss, model.parameters(), retain_graph=True)
    # In double precision, in which gradcheck works, both are equal to the bit; in single, the gates are recomputed.
    rounding = 0 if dtype == torch.float64 else 1e-5
    for a, b in zip(first, torch.autograd.grad(loss, model.parameters(), retain_graph=True), strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
    with pytest.raises(UserError, match="sweep=reference"):
        torch.autograd.grad(loss, model.parameters(), create_graph=True)
    model.sweep = "reference"
    gradients = torch.autograd.grad(model(x)[0].square().sum(), model.parameters(), create_graph=True)
    assert all(g.requires_grad for g in gradients)


def test_fast_loop_multiplies_in_the_type_of_autocast() -> None:
    model, x = network(LSTM()).float(), torch.randint(5, (2, 7))
    exact = model(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, state = model(x)
    assert y.dtype == state.h.dtype == torch.float32
    # bfloat16 has 8 bits of mantissa: the results differ, but not by much.
    assert 1e-5 < (y - exact).abs().max() < 0.02
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("pack", [torch.Tensor.bfloat16, torch.Tensor.double])
def test_saved_tensors_may_come_back_in_another_precision(pack: Callable[[Tensor], Tensor]) -> None:
    """The compiled step would read and write large tensors beyond their ends."""
    torch.manual_seed(0)
    weight, x = (0.1 * torch.randn(128, 37)).requires_grad_(), torch.randn(6, 3, 5)
    start = HiddenMemory(torch.zeros(3, 32), torch.zeros(3, 32))
    found = []
    for change in (lambda x: x, lambda x: pack(x) if x.numel() > 1000 else x):
        with torch.autograd.graph.saved_tensors_hooks(change, lambda x: x):
            out = chain(LSTM(), Weights(weight, None), x, start)
        found.append(torch.autograd.grad(out.outputs.sum(), weight)[0])
    # bfloat16 rounds what was saved by 0.4 %.
    torch.testing.assert_close(*found, rtol=0.02, atol=0.02 if pack is torch.Tensor.bfloat16 else 0)


def test_kernel_in_single_precision_equals_loop_in_double() -> None:
    """In single precision, PyTorch uses another kernel (oneDNN)."""
    x = torch.randint(5, (2, 7))
    single, double = network(LSTM("standard", bias=True)).float(), network(Looped("standard", bias=True))
    torch.testing.assert_close(single(x)[0].double(), double(x)[0], rtol=0, atol=1e-5)  # float32's rounding


@pytest.mark.parametrize("cell", [LSTM("standard", bias=True), Looped("standard", bias=True)])
def test_it_equals_torch_lstm_with_copied_weights(cell: LSTM) -> None:
    model = network(cell)
    reference = nn.LSTM(4, 4, 3, batch_first=True).double()
    assert model.layers.bias is not None
    with torch.no_grad():
        for layer in range(3):
            rows = torch.cat([torch.arange(8), torch.arange(12, 16), torch.arange(8, 12)])  # (u, f, c, o)
            below, before = model.layers.weight[layer, rows].split(4, dim=-1)
            reference.get_parameter(f"weight_ih_l{layer}").copy_(below)
            reference.get_parameter(f"weight_hh_l{layer}").copy_(before)
            reference.get_parameter(f"bias_ih_l{layer}").copy_(model.layers.bias[layer, rows])
            reference.get_parameter(f"bias_hh_l{layer}").zero_()
    x = torch.randint(5, (2, 7))
    y, (h, m) = reference(model.input(x))
    got, state = model(x)
    for a, b in zip([got, *state], [y, h, m], strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("cell", [LSTM(), PeepholeLSTM(), CoupledLSTM(), LSTM("standard")])
def test_layers_are_cells_of_input_and_hidden_vector(cell: Cell) -> None:
    model = StackedLSTM(5, 4, 2, time=cell).double()
    for vector in model.layers.vectors.values():
        nn.init.normal_(vector)
    x = torch.randint(5, (2, 6))
    packed = model.layers.packed((model.num_layers,)).copies(1)
    states = [HiddenMemory(torch.zeros(2, 4).double(), torch.zeros(2, 4).double()) for _ in range(2)]
    outputs = []
    for t in range(6):
        below = model.input(x)[:, t]
        for layer, (weight, bias, vectors) in enumerate(packed):
            z = torch.cat([below, states[layer].h], dim=-1) @ weight.T + (0 if bias is None else bias)
            states[layer] = cell.pointwise(z, *states[layer], *vectors)
            below = states[layer].h
        outputs.append(below)
    torch.testing.assert_close(model(x)[0], torch.stack(outputs, 1), **EXACT)


@pytest.mark.parametrize("cell", [LSTM(), LSTM("standard")])
def test_dropout_spares_the_recurrent_connections(cell: LSTM) -> None:
    model = network(cell, dropout=0.9)
    x = torch.randint(5, (2, 7))
    y, state = model.train()(x)
    assert 0.5 < (y == 0).double().mean() < 1  # the share among the 56 elements of the output
    assert (state.h[0] != 0).all()
    # The input of the first layer is not dropped, so its state equals that of evaluation.
    torch.testing.assert_close(state.h[0], model.eval()(x)[1].h[0], **EXACT)
    assert (model(x)[0] != 0).all()


@pytest.mark.parametrize(
    "cell",
    [LSTM("standard", bias=True), LSTM(bias=True), LayerNormLSTM(), GRU(), NonLSTM("tanh")],
)
def test_memory_is_as_precise_under_autocast_as_in_the_plain_loop(cell: Cell) -> None:
    """A memory in bfloat16 would not change if less than 1/256 of it is added."""
    model, x = network(cell), torch.randint(5, (8, 200))
    if isinstance(cell, LSTM) and model.layers.bias is not None:
        with torch.no_grad():
            model.layers.bias.chunk(4, dim=-1)[1].fill_(6)  # so that the memory accumulates
    _, exact = model(x)
    model.float()
    states = {}
    for sweep in ("reference", "auto"):
        model.sweep = sweep
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x[:, :100])[1]
            states[sweep] = model(x[:, 100:], half)[1]
    for truth, plain, fast in zip(exact, states["reference"], states["auto"], strict=True):
        assert fast.dtype == torch.float32
        # Both round at different places, so their errors are similar but not equal. With a memory in bfloat16, the
        # error is 47 times as large.
        assert (fast - truth).norm() <= 3 * (plain - truth).norm()


@pytest.mark.parametrize("cell", [LSTM(), LSTM("standard")])
def test_a_state_that_does_not_fit_is_refused(cell: LSTM) -> None:
    """Otherwise the kernel would read beyond the end of the state."""
    model, x = StackedLSTM(5, 4, 2, time=cell), torch.zeros(3, 6, dtype=torch.long)
    for h, words in (
        (torch.zeros(2, 1, 4), r"expected the state's h of shape \(2, 3, 4\), got \(2, 1, 4\)"),
        (torch.zeros(2, 3, 4).double(), r"expected the state's h as torch\.float32 on cpu.*got torch\.float64 on cpu"),
    ):
        with pytest.raises(UserError, match=words):
            model(x, StackedLSTMState(h, torch.zeros(2, 3, 4)))


@pytest.mark.parametrize("make", [lambda: StackedLSTM(5, 4, 2, time=LSTM("standard")), lambda: MinGRU(5, 4, 2)])
def test_function_transforms_go_through_plain_loops(make: Callable[[], SequenceModel]) -> None:
    model = make()
    x = torch.randint(5, (3, 2, 6))
    expected = torch.stack([model(row)[0] for row in x])
    torch.testing.assert_close(torch.func.vmap(lambda row: model(row)[0])(x), expected)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="dropout must be a probability"):
        StackedLSTM(5, 4, 3, dropout=1.0)
    with pytest.raises(UserError, match="init_bound must be above 0"):
        StackedLSTM(5, 4, 3, init_bound=0.0)
    with pytest.raises(UserError, match="init_bound must be above 0 and finite, got nan"):
        StackedLSTM(5, 4, 3, init_bound=float("nan"))
    with pytest.raises(UserError, match="tied must be true or false, got 'false'"):
        StackedLSTM(5, 4, 3, tied="false")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"time must be a cell, .* got True"):
        StackedLSTM(5, 4, 3, True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="sweep must be one of auto, reference, got 'wavefront'"):
        StackedLSTM(5, 4, 3, sweep="wavefront")  # type: ignore[arg-type]


def test_all_weights_start_within_the_bound() -> None:
    model = StackedLSTM(50, 40, 3, time=LSTM(bias=True), init_bound=0.08)
    for weight in (model.input.weight, model.layers.weight):
        assert 0.079 < weight.abs().max() <= 0.08
    assert model.layers.bias is not None
    assert model.layers.bias.unique().tolist() == [0, 1]
