"""Features that the module adds to the sweeps: directions, shared weights and the choice of a sweep."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import GRU, NonLSTM
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid, Transform
from gridlstm.models.grid2d import Grid2d
from gridlstm.scan import Masks

# Both sides compute in float64, with different orders of summation.
EXACT = {"rtol": 0.0, "atol": 1e-12}


def random_side(*shape: int) -> HiddenMemory:
    return HiddenMemory(*torch.randn(2, *shape, dtype=torch.float64))


def grid_of_three(reverse: tuple[bool, bool, bool]) -> Grid:
    torch.manual_seed(0)
    names = ("x", "y", "depth")
    return Grid(
        [
            Dimension(name, LSTM(bias=True), size, untied_extent=2 if name == "depth" else None, reverse=backwards)
            for name, size, backwards in zip(names, (2, 3, 2), reverse, strict=True)
        ]
    ).double()


@pytest.mark.parametrize(
    "reverse", [(True, False, False), (False, True, False), (True, True, False), (True, True, True)]
)
def test_reversed_dimension_reads_mirrored_data(reverse: tuple[bool, bool, bool]) -> None:
    extents, B = (3, 4, 2), 2
    forward, backward = grid_of_three((False, False, False)), grid_of_three(reverse)
    backward.load_state_dict(forward.state_dict())
    if reverse[2]:
        with torch.no_grad():
            for parameter in backward.parameters():
                parameter.copy_(parameter.flip(0))  # untied weights belong to positions, not to steps
    torch.manual_seed(1)
    sides = [random_side(4, 2, B, 2), random_side(3, 2, B, 3), random_side(3, 4, B, 2)]
    keep = torch.rand(3, 4, 1, B, 1) < 0.3
    mirrored_axes = [n for n in range(3) if reverse[n]]

    def mirror(sides: list[HiddenMemory]) -> list[HiddenMemory]:
        axes = [[n - (n > own) for n in mirrored_axes if n != own] for own in range(3)]
        return [HiddenMemory(h.flip(at), m.flip(at)) for (h, m), at in zip(sides, axes, strict=True)]

    def masks(keep: Tensor) -> list[Masks]:
        return [Masks(keep_h=keep, keep_m=keep)] * 3

    expected = mirror(forward(mirror(sides), extents, masks(keep.flip(mirrored_axes))))
    torch.testing.assert_close(backward(sides, extents, masks(keep)), expected, **EXACT)


def test_reversed_time_depends_on_later_inputs_only() -> None:
    torch.manual_seed(0)
    grid = Grid([Dimension("time", LSTM(), 2, reverse=True), Dimension("depth", LSTM(), 2)]).double()
    bottom = torch.randn(4, 1, 2, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(2, 1, 2, dtype=torch.float64)
    top = grid([HiddenMemory(zeros, zeros), HiddenMemory(bottom, bottom)], (4, 2))[1].h
    (gradient,) = torch.autograd.grad(top[2].sum(), bottom)
    assert (gradient.abs().sum((1, 2)) > 0).tolist() == [False, False, True, True]


def test_dimensions_can_share_one_weight_set() -> None:
    torch.manual_seed(0)
    dimensions = [
        Dimension("source", LSTM(bias=True), 3),
        Dimension("target", LSTM(bias=True), 3, shares="source"),
        Dimension("depth", LSTM(bias=True), 3),
    ]
    grid = Grid(dimensions).double()
    assert set(grid.transforms) == {"source", "depth"}
    separate = Grid([Dimension(d.name, d.cell, d.size) for d in dimensions]).double()
    for name, transform in separate.transforms.items():
        transform.load_state_dict(grid.transforms["source" if name == "target" else name].state_dict())
    sides = [random_side(2, 2, 1, 3) for _ in range(3)]
    out, expected = grid(sides, (2, 2, 2)), separate(sides, (2, 2, 2))
    torch.testing.assert_close(out, expected, **EXACT)
    sum(side.h.sum() for side in out).backward()  # type: ignore[union-attr]
    sum(side.h.sum() for side in expected).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(
        grid.transforms["source"].weight.grad,
        separate.transforms["source"].weight.grad + separate.transforms["target"].weight.grad,  # type: ignore[operator]
        **EXACT,
    )


def test_a_shared_gru_separates_each_dimension_s_own_h() -> None:
    """With shared weights, the h in n = tanh(W_n x + b_n + r . (W_n h + c_n)) is still the dimension's own."""
    torch.manual_seed(0)
    grid = Grid([Dimension("a", GRU(), 2), Dimension("b", GRU(), 2, shares="a")]).double()
    transform = grid.transforms["a"]
    torch.nn.init.normal_(transform.bias)  # type: ignore[arg-type]
    h = torch.randn(2, 1, 2, dtype=torch.float64)
    out = grid([HiddenMemory(x[None], x.new_zeros(1, 1, 0)) for x in h], (1, 1))
    gates, candidate = transform.weight.tensor_split([4])  # type: ignore[operator]
    b_r, b_s, b_n, c_n = transform.bias.chunk(4)  # type: ignore[operator]
    r, s = (torch.cat([*h], dim=-1) @ gates.T + torch.cat([b_r, b_s])).sigmoid().chunk(2, dim=-1)
    parts = [x @ weight.T for x, weight in zip(h, candidate.split(2, dim=-1), strict=True)]
    for own, other in ((0, 1), (1, 0)):
        n = (parts[other] + b_n + r * (parts[own] + c_n)).tanh()
        torch.testing.assert_close(out[own].h[0], (1 - s) * n + s * h[own], **EXACT)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Dimension("b", LSTM(), 3, shares="c"), r"must name a dimension with its own weights \(a\), got 'c'"),
        (Dimension("b", LSTM(), 4, shares="a"), r"expected LSTM\(.*\) of size 3, got LSTM\(.*\) of size 4"),
        (Dimension("b", LSTM(bias=True), 3, shares="a"), r"expected LSTM\(.*bias=False.*got LSTM\(.*bias=True"),
        (Dimension("b", LSTM(), 3, tied=True, shares="a"), "expected tied=False, got tied=True"),
        (Dimension("a", LSTM(), 3), "different names, got a, a"),
        (Dimension("b", LSTM(), 0), "size of dimension 'b' must be a whole number of at least 1, got 0"),
        (Dimension("b", LSTM(), 3, untied_extent=0), "untied_extent of dimension 'b' must be a whole number .* got 0"),
        (Dimension("b", "lstm", 3), "the cell of dimension 'b' must be a cell, .* got 'lstm'"),  # type: ignore[arg-type]
        (Dimension("", LSTM(), 3), "name of a dimension must be a word .* got ''"),
        (Dimension("a.b", LSTM(), 3), r"name of a dimension must be a word .* got 'a\.b'"),
        (Dimension("keys", LSTM(), 3), "name of a dimension must be a word .* got 'keys'"),
    ],
)
def test_weights_that_cannot_be_shared_raise(second: Dimension, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Grid([Dimension("a", LSTM(), 3), second])


def test_naming_a_priority_twice_raises() -> None:
    with pytest.raises(UserError, match="each dimension once, got b, b"):
        Grid([Dimension("a", LSTM(), 3), Dimension("b", LSTM(), 3)], priority=("b", "b"))


def test_a_string_as_priority_raises() -> None:
    """Otherwise each letter of the string would count as a name."""
    with pytest.raises(UserError, match=r"priority must be a list of dimension names, .* got 'b'"):
        Grid([Dimension("a", LSTM(), 3), Dimension("b", LSTM(), 3)], priority="b")


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ((torch.zeros(2), torch.zeros(2)), r"side 0: expected h of shape \(1, 2\) .* got \(2,\)"),
        (torch.zeros(2, 1, 2), r"side 0: expected HiddenMemory\(h, m\), or another pair of tensors, got Tensor"),
        ((torch.zeros(1, 2), None), r"pair of tensors, got \['Tensor', 'NoneType'\]"),
    ],
)
def test_invalid_sides_raise(side: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Grid([Dimension("a", LSTM(), 2)])([side], (3,))


def test_sides_may_be_plain_tuples() -> None:
    grid, side = Grid([Dimension("a", LSTM(), 2)]), HiddenMemory(*torch.randn(2, 1, 2))
    torch.testing.assert_close(grid([tuple(side)], (3,)), grid([side], (3,)), rtol=0, atol=0)


@pytest.mark.parametrize("sweep", ["auto", "reference", "layer-major"])
@pytest.mark.parametrize("extent", [2, 4])
def test_an_extent_that_differs_from_untied_weights_raises(sweep: SweepName, extent: int) -> None:
    grid = Grid([Dimension("a", LSTM(), 2), Dimension("b", LSTM(), 2, untied_extent=3)], sweep=sweep).double()
    with pytest.raises(UserError, match=rf"expected extents \(3,\) along the untied dimensions.*got \({extent},\)"):
        grid([random_side(extent, 1, 2), random_side(5, 1, 2)], (5, extent))


@pytest.mark.parametrize("sweep", ["auto", "reference"])
def test_sides_of_another_type_than_the_weights_raise(sweep: SweepName) -> None:
    """Otherwise results would look like float64 although the weights are float32."""
    grid = Grid([Dimension("a", LSTM(), 2)], sweep=sweep)
    with pytest.raises(UserError, match=r"expected sides as torch.float32 on cpu like the weights, got torch.float64"):
        grid([random_side(1, 2)], (3,))


def test_padding_changes_neither_outputs_nor_states() -> None:
    torch.manual_seed(0)
    dimensions = [Dimension("time", LSTM(bias=True), 3), Dimension("depth", LSTM(bias=True), 3)]
    lengths, T, L = [5, 3], 5, 2
    for reverse in (False, True):
        grid = Grid([Dimension("time", LSTM(bias=True), 3, reverse=reverse), dimensions[1]]).double()
        state, bottom = random_side(L, 2, 3), random_side(T, 2, 3)
        beyond = torch.arange(T)[:, None] >= torch.tensor(lengths)  # (T, B)
        padding = Masks(keep_h=beyond[:, None, :, None], keep_m=beyond[:, None, :, None])
        poisoned = HiddenMemory(*(torch.where(beyond[..., None], torch.nan, x) for x in bottom))
        last, top = grid([state, poisoned], (T, L), [padding, Masks()])
        for row, length in enumerate(lengths):
            alone = [HiddenMemory(*(x[:, row : row + 1] for x in side)) for side in (state, bottom)]
            alone[1] = HiddenMemory(*(x[:length] for x in alone[1]))
            own_last, own_top = grid(alone, (length, L))
            torch.testing.assert_close(HiddenMemory(*(x[:, [row]] for x in last)), own_last, **EXACT)
            torch.testing.assert_close(HiddenMemory(*(x[:length, [row]] for x in top)), own_top, **EXACT)


def test_every_sweep_gives_the_same_numbers() -> None:
    x = torch.randint(5, (2, 3))
    results = {}
    for tied in (True, False):
        for sweep in ("auto", "wavefront", "reference"):
            torch.manual_seed(0)
            results[tied, sweep] = Grid2d(5, 3, 2, tied=tied, sweep=sweep).double()(x)[0]  # type: ignore[arg-type]
        torch.testing.assert_close(results[tied, "auto"], results[tied, "reference"], **EXACT)
        torch.testing.assert_close(results[tied, "wavefront"], results[tied, "reference"], **EXACT)


def test_layer_major_raises_if_layers_depend_on_each_other() -> None:
    with pytest.raises(UserError, match="sweep=layer-major needs"):
        Grid2d(5, 3, 2, priority="time", sweep="layer-major")
    model = Grid2d(5, 3, 2, priority="time")
    model.grid.sweep = "layer-major"
    with pytest.raises(UserError, match="sweep=layer-major needs"):
        model(torch.randint(5, (2, 3)))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([Masks()], "expected 2 masks, one per dimension, got 1"),
        (
            [Masks(), Masks(keep_h=torch.zeros(3, 1))],
            r"dimension 1: expected keep_h of shape \(3, 2, 4, 2\).*got \(3, 1\)",
        ),
        ([Masks(drop=torch.ones(2, device="meta")), Masks()], r"expected drop .* on cpu, got \(2,\) on meta"),
        ([Masks(keep_m=torch.ones(2, requires_grad=True)), Masks()], "keep_m cannot get a gradient"),
        ([Masks(), Masks(drop=torch.ones(2).int())], "expected drop of booleans or floats, got torch.int32"),
        ([Masks(), Masks(drop=torch.ones(2) > 0, scale=2.0)], r"expected scale as a tensor .* got 2\.0"),  # type: ignore[arg-type]
        ([Masks(), Masks(drop=torch.ones(2) > 0, scale=torch.ones(2))], r"of shape \(\), got a tensor of shape \(2,\)"),
        ([Masks(), Masks(scale=torch.ones(()))], "there is no drop"),
        ([Masks(), Masks(keep_h=[True])], "expected keep_h as a tensor, got list"),  # type: ignore[arg-type]
        ([Masks(), (None, None, None, None)], r"dimension 1: expected gridlstm\.scan\.Masks, got tuple"),
    ],
)
def test_invalid_masks_raise(masks: list[Masks], message: str) -> None:
    grid = Grid([Dimension("a", LSTM(), 2), Dimension("b", LSTM(), 2)]).double()
    with pytest.raises(UserError, match=message):
        grid([random_side(2, 4, 2), random_side(3, 4, 2)], (3, 2), masks)


@pytest.mark.parametrize("sweep", ["reference", "wavefront"])
def test_float_masks_may_have_any_precision(sweep: SweepName) -> None:
    grid, side = Grid([Dimension("a", LSTM(), 2)], sweep=sweep), HiddenMemory(*torch.randn(2, 1, 2))
    keep, drop = torch.rand(2, 3, 1, 2, dtype=torch.float64)
    found = grid([side], (3,), [Masks(keep_h=keep, drop=drop)])
    expected = grid([side], (3,), [Masks(keep_h=keep.float(), drop=drop.float())])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("sweep", ["wavefront", "recompute"])
def test_masks_may_change_before_the_backward_pass(sweep: SweepName) -> None:
    grid = Grid([Dimension("a", LSTM(), 2)], sweep=sweep).double()
    keep, drop, side = torch.tensor([[[True]], [[False]]]), torch.tensor([[[2.0]], [[0.0]]]), random_side(1, 2)

    def gradient(change: bool) -> Tensor:
        out = grid([side], (2,), [Masks(keep_h=keep, drop=drop)])[0].h.sum()
        if change:
            keep.fill_(True)
            drop.fill_(1)
        return torch.autograd.grad(out, grid.transforms["a"].weight)[0]

    assert torch.equal(gradient(change=False), gradient(change=True))


@dataclass(frozen=True)
class Scaled(NonLSTM):
    """h' = scale z + offset."""

    def vector_lengths(self, size: int) -> dict[str, int]:
        return {"scale": size, "offset": size}

    def reset_parameters(self, weight: Tensor, bias: Tensor | None, *vectors: Tensor) -> None:
        super().reset_parameters(weight, bias)
        scale, offset = vectors
        scale.fill_(2)
        offset.fill_(-1)

    def pointwise(self, z: Tensor, h: Tensor, m: Tensor, *vectors: Tensor) -> HiddenMemory:
        scale, offset = vectors
        return HiddenMemory(scale * z + offset, m)


def test_a_cell_gets_its_vectors_in_its_own_order() -> None:
    """The cell defines the order, which is not alphabetical."""
    grid = Grid([Dimension("time", Scaled(), 3)])
    transform = grid.transforms["time"]
    assert isinstance(transform, Transform)
    assert transform.vectors["scale"].tolist() == [2, 2, 2]
    assert transform.vectors["offset"].tolist() == [-1, -1, -1]
    h = torch.randn(5, 3)
    (leaving,) = grid([HiddenMemory(h, h.new_zeros(5, 0))], (1,))
    torch.testing.assert_close(leaving.h, 2 * h @ transform.weight.T - 1)
