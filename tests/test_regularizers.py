"""Each regularizer draws masks as its paper describes, and the noise is the same in every sweep."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from gridlstm import GridLSTM
from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import GRU
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.models.grid2d import Grid2d
from gridlstm.regularizers import Draw, Dropout, FrameDropout, Regularizer, VariationalDropout, Zoneout, combine
from gridlstm.scan import Masks

DRAW = Draw(
    n=0, extents=(20, 3), B=40, size=10, memory_size=10, like=torch.zeros(1).double(), training=True, progress=0.5
)


def test_dropout_keeps_the_mean() -> None:
    drop = Dropout(0.25).masks(DRAW).factor
    assert drop is not None
    assert drop.unique().tolist() == [0, 1 / 0.75]
    assert drop.mean().item() == pytest.approx(1, abs=0.03)  # the standard error of 24,000 draws is 0.004
    assert Dropout(0.25).masks(replace(DRAW, training=False)) == Masks()


def test_variational_dropout_repeats_its_mask_along_its_own_dimension() -> None:
    drop = VariationalDropout(0.5).masks(DRAW).factor
    assert drop is not None
    assert drop.shape == (1, 3, 40, 10)
    assert drop.unique().tolist() == [0, 2]
    other = VariationalDropout(0.5).masks(replace(DRAW, n=1)).drop
    assert other is not None
    assert other.shape == (20, 1, 40, 10)


@pytest.mark.parametrize(
    ("progress", "p"), [(0.0, 0.0), (0.2, 0.0), (0.35, 0.15), (0.5, 0.3), (0.75, 0.15), (1.0, 0.0)]
)
def test_frame_dropout_follows_its_schedule(progress: float, p: float) -> None:
    regularizer = FrameDropout()
    assert regularizer.probability(progress) == pytest.approx(p)
    drop = regularizer.masks(replace(DRAW, progress=progress)).factor
    if p == 0:
        assert drop is None
    else:
        assert drop is not None
        assert drop.shape == (20, 3, 40, 1)
        assert drop.unique().tolist() == [0, 1], "without rescaling"
        assert drop.float().mean().item() == pytest.approx(1 - p, abs=0.05)  # 2,400 draws: standard error 0.01


def test_zoneout_holds_elements_back_and_mixes_in_evaluation() -> None:
    training = Zoneout(h=0.2, m=0.1).masks(DRAW)
    assert training.keep_h is not None
    assert training.keep_m is not None
    assert training.keep_h.dtype == torch.bool
    assert training.keep_h.double().mean().item() == pytest.approx(0.2, abs=0.01)  # 24,000 draws: error 0.003
    assert training.keep_m.double().mean().item() == pytest.approx(0.1, abs=0.01)
    evaluation = Zoneout(h=0.2, m=0.3).masks(replace(DRAW, training=False))
    assert evaluation.keep_h is not None
    assert evaluation.keep_m is not None
    assert (evaluation.keep_h.tolist(), evaluation.keep_m.tolist()) == ([0.2], [0.3])
    assert Zoneout(h=0.2).masks(replace(DRAW, training=False)).keep_m is None


def test_zoneout_mixes_old_and_new_vectors_in_evaluation() -> None:
    """h' = p h + (1 - p) LSTM(h), and likewise m (Krueger et al. 2017)."""
    noisy = Grid([Dimension("time", LSTM(), 3, regularizers=(Zoneout(h=0.2, m=0.3),))]).double().eval()
    plain = Grid([Dimension("time", LSTM(), 3)]).double()
    plain.load_state_dict(noisy.state_dict())
    side = HiddenMemory(*torch.randn(2, 4, 3).double())
    (found,), (new,) = noisy([side], (1,)), plain([side], (1,))
    for p, after, old, fresh in zip((0.2, 0.3), found, side, new, strict=True):
        torch.testing.assert_close(after, p * old + (1 - p) * fresh, rtol=0, atol=1e-12)


def test_masks_combine() -> None:
    a, b = torch.tensor([True, False]), torch.tensor([False, False])
    mixed = combine(
        [Masks(keep_h=a, drop=torch.tensor([2.0])), Masks(keep_h=torch.tensor([0.25]), drop=torch.tensor([3.0]))]
    )
    assert mixed.keep_h is not None
    assert mixed.keep_h.tolist() == [1, 0.25]
    assert mixed.factor is not None
    assert mixed.factor.tolist() == [6]
    scaled = Masks(drop=torch.tensor([True, False]), scale=torch.tensor(4.0))
    for order in ([scaled, Masks(keep_m=a)], [Masks(keep_m=a), scaled]):
        assert combine(order)[2:] == scaled[2:]
    for order in ([scaled, Masks(drop=torch.tensor([2.0]))], [Masks(drop=torch.tensor([2.0])), scaled]):
        assert (factor := combine(order).factor) is not None
        assert factor.tolist() == [8, 0]
    twice = combine([scaled, Masks(drop=torch.tensor([True, True]), scale=torch.tensor(0.5))])
    assert twice.drop is not None
    assert twice.drop.dtype == torch.bool
    assert twice.factor is not None
    assert twice.factor.tolist() == [2, 0]
    either = combine([Masks(keep_m=a), Masks(keep_m=b)])
    assert either.keep_m is not None
    assert either.keep_m.tolist() == [True, False]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_noise_is_the_same_for_every_sweep(training: bool, tied: bool) -> None:
    x, results = torch.randint(5, (3, 4)), []
    for sweep in ("reference", "wavefront", "recompute", "layer-major"):
        torch.manual_seed(0)
        model = Grid2d(
            5,
            6,
            3,
            tied=tied,
            sweep=sweep,  # type: ignore[arg-type]
            time_regularizers=[Zoneout(h=0.3, m=0.2), VariationalDropout(0.3)],
            depth_regularizers=[Dropout(0.4), FrameDropout(((0.0, 0.3),))],
        ).double()
        model.train(training)
        torch.manual_seed(1)
        y, _ = model(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)


def test_noise_is_off_in_evaluation() -> None:
    grid = Grid([Dimension("time", LSTM(), 3, regularizers=(Dropout(0.5),))])
    side = HiddenMemory(torch.ones(2, 3), torch.ones(2, 3))
    noisy, also_noisy = (grid([side], (3,))[0].h for _ in range(2))
    assert not torch.equal(noisy, also_noisy)
    grid.eval()
    assert torch.equal(grid([side], (3,))[0].h, grid([side], (3,))[0].h)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Dropout, {"p": 1.0}),
        (Zoneout, {"h": -0.1}),
        (FrameDropout, {"schedule": ((0.5, 0.1), (0.2, 0.1))}),
        (FrameDropout, {"schedule": ((0.0, 2.0),)}),
        (FrameDropout, {"schedule": ((float("nan"), 0.2),)}),
        (FrameDropout, {"schedule": (("a", 0.2),)}),
        (FrameDropout, {"schedule": (0.1, 0.2)}),
        (FrameDropout, {"schedule": ()}),
    ],
)
def test_wrong_probabilities_are_refused(kind: type[Regularizer], arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must"):
        kind(**arguments)


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"time_regularizers": [Dropout(0.5)]}])
def test_each_sample_of_vmap_has_its_own_noise(options: dict[str, Any]) -> None:
    network, x = GridLSTM(5, 4, 3, **options), torch.randn(1, 6, 1, 5).expand(2, -1, -1, -1)
    first, second = torch.func.vmap(lambda x: network(x)[0], randomness="different")(x)
    assert not torch.equal(first, second)


def test_zoneout_of_a_missing_memory_is_refused() -> None:
    Grid([Dimension("depth", GRU(), 3, regularizers=(Zoneout(h=0.1),))])
    with pytest.raises(UserError, match=r"dimension 'depth' has no memory .* expected m=0 .* got m=0\.2"):
        Grid([Dimension("depth", GRU(), 3, regularizers=(Zoneout(h=0.1, m=0.2),))])


def test_noise_is_not_coarser_in_half_precision() -> None:
    """Random numbers in bfloat16 are multiples of 1/256, and only 0 is below 0.001."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        held = DRAW.bernoulli(0.001, 1_000_000).float().mean().item()
    finally:
        torch.set_default_dtype(torch.float32)
    assert held == pytest.approx(0.001, rel=0.2)  # the standard error is 3 %


def test_masks_that_need_a_gradient_raise() -> None:
    @dataclass(frozen=True)
    class Learned(Regularizer):
        p: torch.Tensor

        def masks(self, draw: Draw) -> Masks:
            return Masks(drop=self.p.expand(draw.size))

    grid = Grid([Dimension("time", LSTM(), 4, regularizers=(Learned(torch.ones(1, requires_grad=True)),))])
    with pytest.raises(UserError, match="drop cannot get a gradient"):
        grid([HiddenMemory(torch.zeros(2, 4), torch.zeros(2, 4))], (3,))
