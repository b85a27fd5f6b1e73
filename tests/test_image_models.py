"""Networks of images against the reference sweep, and properties that all of them share."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import GRU, NonLSTM
from gridlstm.cost import run_once
from gridlstm.errors import UserError
from gridlstm.grid import Grid, Transform
from gridlstm.models.base import ImageModel
from gridlstm.models.cnn import CNN
from gridlstm.models.grid3d import CORNERS, Grid3d
from gridlstm.models.mdlstm_image import MDLSTMImage
from gridlstm.models.mlp import MLP
from gridlstm.models.renet import ReNet
from gridlstm.models.unet import UNet
from gridlstm.scan import scan

MAKE: dict[str, Callable[[], ImageModel]] = {
    "grid3d": lambda: Grid3d(2, 6, 8, 4, 4, patch=2),
    "grid3d relu depth": lambda: Grid3d(2, 6, 8, 4, 4, patch=2, depth=NonLSTM("relu"), priority="depth"),
    "grid3d identity depth": lambda: Grid3d(2, 6, 8, 4, 4, patch=2, depth=NonLSTM()),
    "grid3d gru": lambda: Grid3d(2, 6, 8, 4, 3, patch=2, space=GRU()),
    "mdlstm_image": lambda: MDLSTMImage(2, 6, 8, 4, 4, patch=2),
    "renet": lambda: ReNet(2, 6, 8, 4, 2, patch=2),
    "cnn": lambda: CNN(2, 6, 8, 4, 3),
    "mlp": lambda: MLP(2, 6, 8, 4, 3),
    "unet": lambda: UNet(2, 6, 8, 4, 3),
}


@pytest.fixture(params=MAKE)
def model(request: pytest.FixtureRequest) -> ImageModel:
    torch.manual_seed(0)
    return MAKE[request.param]().double()


def images(rows: int = 3) -> Tensor:
    return torch.randn(rows, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain(model: Grid3d, x: Tensor, corners: list[str]) -> Tensor:
    """Compute layer by layer: flip the map so that the corner comes first, scan it block by block, flip it back."""
    d, m_size = model.sizes
    p = model.input.patch
    Y, X = model.map_size
    patches = [[x[:, :, p * i : p * i + p, p * j : p * j + p].flatten(1) for j in range(X)] for i in range(Y)]
    bottom = torch.stack([torch.stack(row) for row in patches]) @ model.input.weight.T  # (Y, X, B, d + d)
    h, m = bottom.split([d, m_size], dim=-1)
    for corner, layer in zip(corners, model.layers, strict=True):
        assert isinstance(layer, Grid)
        axes = [axis for axis, turned in enumerate(CORNERS[corner]) if turned]
        weights = []
        for own, name in enumerate(("y", "x", "depth")):
            transform = layer.transforms[name]
            assert isinstance(transform, Transform)
            weights.append(transform.packed((), slice(own * d, own * d + d)))
        memory = layer.block.cells[0].memory_size(d)
        zeros = [HiddenMemory(*(x.new_zeros(n, 1, len(x), size) for size in (d, memory))) for n in (X, Y)]
        above = scan(layer.block, weights, [*zeros, HiddenMemory(h.flip(axes), m.flip(axes))], (Y, X, 1))[2]
        h, m = above.h.flip(axes), above.m.flip(axes)
    return torch.cat([h, m], dim=-1).permute(2, 0, 1, 3)


@pytest.mark.parametrize("priority", [None, "depth"])
@pytest.mark.parametrize("corners", [*([corner] for corner in CORNERS), list(CORNERS)])
def test_a_scan_from_every_corner_is_the_reference_in_value_and_gradient(
    corners: list[str], priority: str | None
) -> None:
    torch.manual_seed(0)
    model = Grid3d(2, 6, 8, 4, len(corners), patch=2, corners=corners, priority=priority).double()
    x = images().requires_grad_()
    weight = torch.randn(3, 3, 4, 8, dtype=torch.float64)
    leaves = [x, *model.parameters()]
    found, expected = (
        [y, *torch.autograd.grad((y * weight).sum(), leaves)] for y in (model(x), plain(model, x, corners))
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("corner", CORNERS)
def test_scan_output_depends_only_on_places_towards_its_corner(corner: str) -> None:
    model = Grid3d(2, 6, 8, 4, 1, patch=2, corners=[corner]).double()
    seen = reach(model)
    from_bottom, from_right = CORNERS[corner]
    for y, x in [(y, x) for y in range(3) for x in range(4)]:
        rows = range(y, 3) if from_bottom else range(y + 1)
        columns = range(x, 4) if from_right else range(x + 1)
        expected = {(row, column) for row in rows for column in columns}
        assert {(row, column) for row in range(3) for column in range(4) if seen[y, x, row, column]} == expected
    assert model.last_place is not None
    assert seen[model.last_place].all()


def reach(model: ImageModel) -> Tensor:
    """Return booleans (Y, X, Y, X): does the output at the first two indices depend on the patch at the last two?"""
    x = images(1).requires_grad_()
    y = model(x)[0]
    direction = torch.linspace(1, 2, y.shape[-1], dtype=torch.float64)
    gradients = [torch.autograd.grad((place * direction).sum(), x, retain_graph=True)[0] for place in y.flatten(0, 1)]
    strength = F.max_pool2d(torch.stack(gradients)[:, 0].abs().amax(1, keepdim=True), 2)[:, 0]
    return (strength > 0).unflatten(0, y.shape[:2])


@pytest.mark.parametrize("name", ["grid3d", "grid3d gru", "mdlstm_image", "renet"])
def test_every_patch_reaches_every_place(name: str) -> None:
    torch.manual_seed(0)
    assert reach(MAKE[name]().double()).all()


def test_shapes_and_gradients(model: ImageModel) -> None:
    y = model(images())
    assert y.shape == (3, *model.map_size, model.output_size)
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_images_in_a_batch_are_computed_independently(model: ImageModel) -> None:
    x = images()
    torch.testing.assert_close(model(x[1:2])[0], model(x)[1], rtol=0, atol=1e-13)


def test_other_images_are_refused(model: ImageModel) -> None:
    for wrong in (torch.zeros(3, 2, 6, 7), torch.zeros(2, 6, 8), torch.zeros(3, 2, 6, 8, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"expected images \(B, 2, 6, 8\) of floats, got"):
            model(wrong)
    with pytest.raises(UserError, match=r"expected images of type torch\.float64 like the weights, got torch\.float32"):
        model(torch.zeros(3, 2, 6, 8))


def test_the_papers_network_has_1_44_million_weights() -> None:
    with torch.device("meta"):
        model = Grid3d(1, 28, 28, 100, 4, patch=2)
    assert sum(parameter.numel() for parameter in model.layers.parameters()) == 1_440_000
    assert model.map_size == (14, 14)


def test_grid_flops_match_the_formula() -> None:
    d, places = 4, 12
    model = Grid3d(2, 6, 8, d, 4, patch=2)
    run_once(model, torch.zeros(1, 2, 6, 8))
    # Each layer has 3 transforms of 4 d x 3 d weights. A weight costs two operations in the forward pass, in the
    # gradient of the input and in the gradient of the weights. The projection of 8 pixels to 2 d needs no gradient of
    # its input.
    assert run_once(model, torch.zeros(1, 2, 6, 8)).flops == places * (4 * 3 * 24 * d * 3 * d + 2 * 2 * 8 * 2 * d)


def test_invalid_options_are_refused() -> None:
    sizes = {"channels": 2, "height": 6, "width": 8, "hidden_size": 4, "num_layers": 1, "patch": 2}
    for options, words in (
        ({"patch": 4}, r"patch must divide the 6 x 8 pixels of an image, got 4: choose one of 1, 2\."),
        ({"corners": ["middle"]}, "corners must be a list of top_left, bottom_right, top_right, bottom_left, got"),
        ({"corners": "top_left"}, "corners must be a list of"),
        ({"corners": []}, "corners must be a list of"),
        ({"corners": [["top_left"]]}, r"corners must be a list of .*, got \[\['top_left'\]\]"),
        ({"corners": {"top_left": 1}}, "corners must be a list of .*, got {'top_left': 1}"),
        ({"corners": ["top_left", "top_right"]}, "corners must be a list of at most num_layers=1 corners, one for"),
        ({"priority": "y"}, "priority must be depth or null, got 'y'"),
        ({"space": "lstm"}, "space must be a cell"),
        ({"depth": LSTM}, "depth must be a cell"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=words):
            Grid3d(**{**sizes, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("corner", CORNERS)
def test_multidimensional_lstms_scan_as_their_plain_loops_do(corner: str) -> None:
    torch.manual_seed(0)
    fast = MDLSTMImage(2, 6, 8, 4, 2, patch=2, corners=[corner]).double()
    slow = MDLSTMImage(2, 6, 8, 4, 2, patch=2, corners=[corner], sweep="reference").double()
    slow.load_state_dict(fast.state_dict())
    x = images().requires_grad_()
    found, expected = (
        [y, *torch.autograd.grad(y.square().sum(), [x, *m.parameters()])] for m in (fast, slow) for y in [m(x)]
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    turned = [axis + 2 for axis, yes in enumerate(CORNERS[corner]) if yes]
    if (
        turned
    ):  # a scan from another corner equals a scan of the flipped image from the first corner, also inside patches
        first = MDLSTMImage(2, 6, 8, 4, 2, patch=1, corners=["top_left"]).double()
        other = MDLSTMImage(2, 6, 8, 4, 2, patch=1, corners=[corner]).double()
        other.load_state_dict(first.state_dict())
        places = [axis - 1 for axis in turned]
        torch.testing.assert_close(other(x), first(x.flip(turned)).flip(places), rtol=0, atol=1e-13)


def test_renet_is_its_equations() -> None:
    """LSTMs run down and up each column, then right and left along the rows of their outputs: a loop over cells."""
    torch.manual_seed(0)
    model = ReNet(2, 6, 8, 4, 1, patch=2).double()
    x = images()

    def both_ways(layer: torch.nn.Module, steps: list[Tensor]) -> list[Tensor]:
        weights = dict(layer.named_parameters())
        ways = []
        for suffix, order in (("", range(len(steps))), ("_reverse", reversed(range(len(steps))))):
            h = m = steps[0].new_zeros(len(x), 4)
            outputs: dict[int, Tensor] = {}
            for t in order:
                z = F.linear(steps[t], weights[f"weight_ih_l0{suffix}"], weights[f"bias_ih_l0{suffix}"])
                z = z + F.linear(h, weights[f"weight_hh_l0{suffix}"], weights[f"bias_hh_l0{suffix}"])
                u, f, c, o = z.chunk(4, dim=-1)
                m = f.sigmoid() * m + u.sigmoid() * c.tanh()
                h = outputs[t] = o.sigmoid() * m.tanh()
            ways.append(outputs)
        return [torch.cat([ways[0][t], ways[1][t]], dim=-1) for t in range(len(steps))]

    bottom = model.input(x)
    columns = [both_ways(model.columns[0], list(bottom[:, j])) for j in range(4)]  # [X][Y]
    rows = [both_ways(model.rows[0], [columns[j][i] for j in range(4)]) for i in range(3)]
    expected = torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1, 3)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-13)


def test_too_many_convolution_layers_are_refused() -> None:
    assert CNN(1, 28, 28, 4, 9).map_size == (1, 1)
    with pytest.raises(
        UserError, match=r"num_layers=10 halves an image of 28 x 28 pixels 5 times: give at most num_la.*=9"
    ):
        CNN(1, 28, 28, 4, 10)
    assert CNN(1, 6, 8, 4, 4).output_size == 8


def test_the_u_net_is_its_equations() -> None:
    """The reference uses unfolded windows. With 5 x 7 pixels, each halving leaves a row and a column over."""
    torch.manual_seed(0)
    model, x = UNet(2, 5, 7, 4, 3).double(), torch.randn(3, 2, 5, 7, dtype=torch.float64)

    def twice(pair: torch.nn.Module, y: Tensor) -> Tensor:
        weights = list(pair.parameters())
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            windows = F.pad(y, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)  # (B, channels, Y, X, 3, 3)
            y = (torch.einsum("bcyxij,dcij->bdyx", windows, weight) + bias[:, None, None]).clamp(min=0)
        return y

    def halved(y: Tensor) -> Tensor:
        return y.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))

    def repeated(y: Tensor, size: tuple[int, int]) -> Tensor:
        rows, columns = ([i * old // new for i in range(new)] for old, new in zip(y.shape[2:], size, strict=True))
        return y[:, :, rows][:, :, :, columns]

    first = twice(model.down[0], x)
    second = twice(model.down[1], halved(first))
    y = twice(model.down[2], halved(second))
    for pair, skipped in ((model.up[1], second), (model.up[0], first)):
        y = twice(pair, torch.cat([repeated(y, (skipped.shape[2], skipped.shape[3])), skipped], dim=1))
    torch.testing.assert_close(model(x), y.permute(0, 2, 3, 1), rtol=0, atol=1e-13)


def test_a_u_net_of_too_many_levels_is_refused() -> None:
    assert UNet(1, 28, 28, 4, 5).map_size == (28, 28)
    with pytest.raises(UserError, match=r"num_layers=6 halves an image of 28 x 28 pixels 5 times: give at most .*=5\."):
        UNet(1, 28, 28, 4, 6)


@pytest.mark.parametrize(
    ("name", "multiplications"),
    [
        # The forward pass, and the gradients of the weights and of all inputs except the pixels.
        ("mlp", 2 * 96 * 4 + 3 * 2 * 4 * 4),
        # 2 channels to 4 and 4 to 4 at 48 positions, then 4 to 8 at 12 positions.
        ("cnn", 9 * (48 * (2 * 2 * 4 + 3 * 4 * 4) + 12 * 3 * 4 * 8)),
        # 48, 12 and 2 positions on the way down, then 12 and 48 up: two layers each, of 4, 8 and 16 channels.
        (
            "unet",
            9 * (48 * (2 * 2 * 4 + 3 * 4 * 4) + 3 * (12 * (4 + 8 + 24 + 8) * 8 + 2 * (8 + 16) * 16 + 48 * 16 * 4)),
        ),
        # 8 pixels to 8 at 12 positions, then two layers of columns and rows in both directions: 4 gates of 8 + 4.
        ("renet", 12 * (2 * 8 * 8 + 3 * 2 * 2 * 2 * 16 * 12)),
        # 8 pixels to 4 at 12 positions, then four layers of 5 gates of 4 + 2 x 4; incoming zeros need no gradient.
        ("mdlstm_image", 12 * (2 * 8 * 4 + 3 * 4 * 20 * 12) - 4 * 20 * 8),
    ],
)
def test_flops_of_rival_models_are_counted_completely(name: str, multiplications: int) -> None:
    model, rows = MAKE[name](), torch.zeros(1, 2, 6, 8)
    run_once(model, rows)
    assert run_once(model, rows).flops == 2 * multiplications


@pytest.mark.parametrize("name", MAKE)
def test_autocast_differs_by_rounding(name: str) -> None:
    torch.manual_seed(0)
    model, x = MAKE[name]().eval(), images().float()
    with torch.autocast("cpu", torch.bfloat16):
        lower = model(x)
    torch.testing.assert_close(lower.float(), model(x), rtol=0, atol=0.1)
    lower.float().sum().backward()
