"""Networks of pixels and of moving images against the reference sweep, and the inputs that each output depends on."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.cells import GRU, NonLSTM
from gridlstm.errors import UserError
from gridlstm.grid import Grid, Transform
from gridlstm.models.base import Model, PixelModel, VideoModel
from gridlstm.models.convlstm import ConvLSTM
from gridlstm.models.grid2d_pixels import Grid2dPixels
from gridlstm.models.grid3d import CORNERS, Grid3d
from gridlstm.models.grid4d import Grid4d
from gridlstm.models.pixel_lstm import PixelLSTM
from gridlstm.models.pixelcnn import PixelCNN
from gridlstm.scan import apply_block

PIXELS: dict[str, Callable[[], PixelModel]] = {
    "grid2d_pixels": lambda: Grid2dPixels(1, 4, 5, 3, 2),
    "grid2d_pixels one layer": lambda: Grid2dPixels(1, 4, 5, 3, 1),
    "grid2d_pixels identity depth": lambda: Grid2dPixels(1, 4, 5, 3, 2, depth=NonLSTM()),
    "grid2d_pixels priority": lambda: Grid2dPixels(1, 4, 5, 3, 2, priority="depth"),
    "grid2d_pixels identity depth, priority": lambda: Grid2dPixels(1, 4, 5, 3, 2, depth=NonLSTM(), priority="depth"),
    "grid2d_pixels gru": lambda: Grid2dPixels(1, 4, 5, 3, 2, space=GRU()),
    "pixelcnn": lambda: PixelCNN(1, 4, 5, 3, 2),
    "pixel_lstm": lambda: PixelLSTM(1, 4, 5, 3, 2),
    "pixel_lstm of the paper's cells": lambda: PixelLSTM(1, 4, 5, 3, 2, LSTM()),
}
VIDEOS: dict[str, Callable[[], VideoModel]] = {
    "grid4d": lambda: Grid4d(1, 4, 6, 3, 4, patch=2),
    "grid4d identity depth": lambda: Grid4d(1, 4, 6, 3, 2, patch=2, depth=NonLSTM()),
    "grid4d priority": lambda: Grid4d(1, 4, 6, 3, 2, patch=2, priority="depth"),
    "grid4d identity depth, priority": lambda: Grid4d(1, 4, 6, 3, 2, patch=2, depth=NonLSTM(), priority="depth"),
    "grid4d gru": lambda: Grid4d(1, 4, 6, 3, 2, patch=2, space=GRU(), time=GRU()),
    "convlstm": lambda: ConvLSTM(1, 4, 6, 3, 2, patch=2),
}
MAKE: dict[str, Callable[[], Model]] = {**PIXELS, **VIDEOS}


@pytest.fixture(params=PIXELS)
def pixels(request: pytest.FixtureRequest) -> PixelModel:
    torch.manual_seed(0)
    return PIXELS[request.param]().double()


@pytest.fixture(params=VIDEOS)
def video(request: pytest.FixtureRequest) -> VideoModel:
    torch.manual_seed(0)
    return VIDEOS[request.param]().double()


def images(rows: int = 2) -> Tensor:
    return torch.randn(rows, 1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def frames(rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def use_reference(model: Grid2dPixels | Grid4d) -> None:
    for grid in model.modules():
        if isinstance(grid, Grid):
            grid.sweep = "reference"


@pytest.mark.parametrize("name", [name for name in MAKE if name.startswith("grid")])
def test_a_grid_is_its_reference_sweep_in_value_and_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = MAKE[name]().double()
    assert isinstance(model, Grid2dPixels | Grid4d)
    x = (images() if isinstance(model, Grid2dPixels) else frames()).requires_grad_()

    def values() -> list[Tensor]:
        y = model(x)[0] if isinstance(model, Grid2dPixels) else model(x)
        direction = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        return [y, *torch.autograd.grad((y * direction).sum(), [x, *model.parameters()])]

    fast = values()
    use_reference(model)
    for a, b in zip(fast, values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert all(gradient.abs().sum() > 0 for gradient in fast)


# Pixels in raster order.


def scanned(grid: Grid, entering: list[list[HiddenMemory]], columns: list[int]) -> list[list[HiddenMemory]]:
    """Return the output along depth at every row and column, computed block by block in the given order of columns."""
    size = grid.block.sizes[0]
    weights = []
    for own, name in enumerate(("y", "x", "depth")):
        transform = grid.transforms[name]
        assert isinstance(transform, Transform)
        weights.append(transform.packed((), slice(own * size, own * size + size)))
    zeros = torch.zeros(len(entering[0][0].h), size, dtype=torch.float64)
    along_y = [HiddenMemory(zeros, zeros) for _ in columns]
    for row in entering:
        along_x = HiddenMemory(zeros, zeros)
        for j in columns:
            along_y[j], along_x, row[j] = apply_block(grid.block, weights, [along_y[j], along_x, row[j]])
    return entering


@pytest.mark.parametrize("priority", [None, "depth"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_causal_grid_is_its_equations(layers: int, priority: str | None) -> None:
    torch.manual_seed(0)
    model, x = Grid2dPixels(1, 4, 5, 3, layers, priority=priority).double(), images()
    nothing = HiddenMemory(*(torch.zeros(2, 3, dtype=torch.float64) for _ in range(2)))
    v = [[HiddenMemory(*(x[:, :, i, j] @ model.input.weight.T).split(3, dim=1)) for j in range(5)] for i in range(4)]
    start = HiddenMemory(*model.start.expand(2, -1).split(3, dim=1))
    for_a, for_b = [[start, *row[:-1]] for row in v], v
    for left, right in zip(model.left, model.right, strict=True):
        assert isinstance(left, Grid)
        assert isinstance(right, Grid)
        a = scanned(left, for_a, [0, 1, 2, 3, 4])
        b = [[nothing] * 5, *scanned(right, for_b, [4, 3, 2, 1, 0])]
        y = [
            [HiddenMemory((p.h + q.h) / 2, (p.m + q.m) / 2) for p, q in zip(a[i], b[i], strict=True)] for i in range(4)
        ]
        for_a, for_b = [list(row) for row in y], [list(row) for row in y]
    expected = torch.stack([torch.stack([torch.cat(place, dim=1) for place in row], 1) for row in y], 1)
    torch.testing.assert_close(model(x)[0], expected, rtol=0, atol=1e-13)


def test_a_pixel_depends_on_every_earlier_pixel_and_on_no_other(pixels: PixelModel) -> None:
    x = images(1).requires_grad_()
    y = pixels(x)[0][0].flatten(0, 1)
    direction = torch.linspace(1, 2, y.shape[-1], dtype=torch.float64)
    reach = torch.stack([torch.autograd.grad(at @ direction, x, retain_graph=True)[0].flatten() for at in y])
    earlier = torch.ones(20, 20).tril(-1).bool()
    assert (reach[earlier] != 0).all()
    assert (reach[~earlier] == 0).all()


def test_changing_a_pixel_changes_no_output_up_to_it(pixels: PixelModel) -> None:
    x = images(1)
    before = pixels(x)[0].flatten(1, 2)
    for k in range(20):
        changed = x.clone()
        changed.view(-1)[k] += 1
        after = pixels(changed)[0].flatten(1, 2)
        assert torch.equal(after[:, : k + 1], before[:, : k + 1])
        assert (after != before).any(2)[0, k + 1 :].all()


def test_an_image_in_bands_of_rows_gives_the_same_outputs(pixels: PixelModel) -> None:
    whole, end = pixels(images())
    state, bands = None, []
    for band in images().split([1, 2, 1], dim=2):
        y, state = pixels(band, state)
        bands.append(y)
    torch.testing.assert_close(torch.cat(bands, dim=1), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(state, end, rtol=0, atol=1e-13)


def test_other_images_are_refused(pixels: PixelModel) -> None:
    with pytest.raises(UserError, match=r"expected rows of images \(B, 1, rows, 5\), got shape \(2, 1, 4, 6\)\. Give"):
        pixels(torch.zeros(2, 1, 4, 6))
    with pytest.raises(UserError, match=r"expected images of type torch\.float64 like the weights, got torch\.float32"):
        pixels(torch.zeros(2, 1, 4, 5))


def test_an_lstm_over_pixels_reads_them_in_raster_order() -> None:
    torch.manual_seed(0)
    model, x = PixelLSTM(1, 4, 5, 3, 2).double(), images()
    sequence = torch.stack([x[:, :, k // 5, k % 5] for k in range(19)], dim=1)
    shifted = torch.cat([torch.zeros(2, 1, 1, dtype=torch.float64), sequence], dim=1)
    torch.testing.assert_close(model(x)[0].flatten(1, 2), model.lstm(shifted)[0], rtol=0, atol=1e-13)


def test_the_gated_pixelcnn_is_its_equations() -> None:
    """The reference computes pixel by pixel, with windows cut by hand from maps with zeros around them."""
    torch.manual_seed(0)
    model, x = PixelCNN(1, 4, 5, 3, 2).double(), images()

    def place(y: Tensor, i: int, j: int) -> Tensor:
        inside = 0 <= i < 4 and 0 <= j < 5
        return y[:, :, i, j] if inside else torch.zeros_like(y[:, :, 0, 0])

    def whole(one: Callable[[int, int], Tensor]) -> Tensor:
        return torch.stack([torch.stack([one(i, j) for j in range(5)], -1) for i in range(4)], -2)

    def sums(convolution: torch.nn.Module, y: Tensor, offsets: list[list[tuple[int, int]]]) -> Tensor:
        weight, bias = convolution.weight, convolution.bias
        assert isinstance(weight, Tensor)
        taps = [(*offset, weight[:, :, a, b].T) for a, row in enumerate(offsets) for b, offset in enumerate(row)]
        return whole(lambda i, j: sum((place(y, i + up, j + left) @ w for up, left, w in taps), bias))  # type: ignore[arg-type]

    def gate(y: Tensor) -> Tensor:
        return y[:, :3].tanh() * y[:, 3:].sigmoid()

    here = [[(0, 0)]]
    v = sums(model.above, whole(lambda i, j: place(x, i - 1, j)), here)
    h = sums(model.left, whole(lambda i, j: place(x, i, j - 1)), here)
    for layer in model.layers:
        g = sums(layer.vertical, v, [[(up, left) for left in range(-2, 3)] for up in range(-2, 1)])
        along = sums(layer.horizontal, h, [[(0, left) for left in range(-2, 1)]])
        h = h + sums(layer.out, gate(along + sums(layer.across, g, here)), here)
        v = gate(g)
    torch.testing.assert_close(model(x)[0], h.permute(0, 2, 3, 1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel", [1, 4])
def test_pixelcnn_kernels_without_earlier_pixels_or_middle_are_refused(kernel: int) -> None:
    with pytest.raises(UserError, match=rf"kernel must be odd and at least 3, got {kernel}\. Choose"):
        PixelCNN(1, 4, 5, 3, 2, kernel=kernel)


# Moving images.


def test_outputs_of_a_frame_depend_on_it_and_on_all_earlier_frames(video: VideoModel) -> None:
    x = frames(1).requires_grad_()
    y = video(x)[0]  # (T, Y, X, e)
    direction = torch.linspace(1, 2, y.shape[-1], dtype=torch.float64)
    for time in range(3):
        for place in y[time].flatten(0, 1):
            gradient = torch.autograd.grad(place @ direction, x, retain_graph=True)[0][0, :, 0]  # (T, 4, 6)
            patches = gradient.abs().unflatten(2, (3, 2)).unflatten(1, (2, 2)).amax((2, 4))
            assert (patches[: time + 1] > 0).all()
            assert (patches[time + 1 :] == 0).all()


def test_a_prediction_does_not_change_with_the_number_of_later_frames(video: VideoModel) -> None:
    torch.testing.assert_close(video(frames()[:, :2]), video(frames())[:, :2], rtol=0, atol=1e-13)


@pytest.mark.parametrize("corner", CORNERS)
def test_one_frame_of_a_4d_grid_is_a_3d_grid(corner: str) -> None:
    """Without priority, the weights that read the h of time multiply zeros in the first frame."""
    torch.manual_seed(0)
    whole, flat = Grid4d(1, 4, 6, 3, 1, 2, [corner]).double(), Grid3d(1, 4, 6, 3, 1, 2, [corner]).double()
    kept = [0, 1, 2, 3, 4, 5, 9, 10, 11]  # indices of the h of rows, columns and depth
    own = whole.state_dict()
    flat.load_state_dict({name: own[name][:, kept] if "layers" in name else own[name] for name in flat.state_dict()})
    torch.testing.assert_close(whole(frames()[:, :1])[:, 0], flat(frames()[:, 0]), rtol=0, atol=1e-13)


def test_other_frames_are_refused(video: VideoModel) -> None:
    for wrong in (torch.zeros(2, 1, 4, 6), torch.zeros(2, 0, 1, 4, 6)):
        with pytest.raises(UserError, match=r"expected frames \(B, T, channels, height, width\), got shape"):
            video(wrong)
    with pytest.raises(UserError, match=r"expected images \(B, 1, 4, 6\) of floats"):
        video(torch.zeros(2, 3, 1, 4, 5))


def test_the_convolutional_lstm_is_its_equations() -> None:
    """The reference uses unfolded windows, frame by frame."""
    torch.manual_seed(0)
    model, x = ConvLSTM(1, 4, 6, 3, 1, patch=2, kernel=3, forget_bias=0.5).double(), frames()
    (convolution,) = model.layers
    weight, bias = convolution.weight, convolution.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    h = m = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    expected = []
    for frame in x.unbind(1):
        around = F.pad(torch.cat([model.input(frame).permute(2, 3, 0, 1), h], dim=1), (1, 1, 1, 1))
        windows = around.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, 2 d, Y, X, 3, 3)
        z = torch.einsum("bcyxij,dcij->bdyx", windows, weight) + bias[:, None, None]
        m = (z[:, 3:6] + 0.5).sigmoid() * m + z[:, :3].sigmoid() * z[:, 9:].tanh()
        h = z[:, 6:9].sigmoid() * m.tanh()
        expected.append(h.permute(0, 2, 3, 1))
    torch.testing.assert_close(model(x), torch.stack(expected, dim=1), rtol=0, atol=1e-13)


def test_the_memory_of_a_convolutional_lstm_grows_in_small_steps_under_autocast() -> None:
    """A memory in bfloat16 would stop where an increment of 0.002 is below half of its last place."""
    model = ConvLSTM(1, 1, 1, 1, 1, patch=1, kernel=1, forget_bias=0.0)
    (convolution,) = model.layers
    with torch.no_grad():
        convolution.weight.zero_()  # type: ignore[union-attr]
        convolution.bias.copy_(torch.tensor([20.0, 20.0, 20.0, 0.002]))  # type: ignore[union-attr, operator]
        with torch.autocast("cpu", torch.bfloat16):
            (last,) = model(torch.zeros(1, 1000, 1, 1, 1))[0, -1].flatten()
    assert float(last) == pytest.approx(math.tanh(2.0), abs=0.01)


def test_an_even_kernel_of_a_convolutional_lstm_is_refused() -> None:
    with pytest.raises(UserError, match=r"kernel must be odd, got 2\. Choose"):
        ConvLSTM(1, 4, 6, 3, 1, patch=2, kernel=2)


# Pixels and moving images.


@pytest.mark.parametrize("name", MAKE)
def test_rows_in_a_batch_are_computed_independently(name: str) -> None:
    model = MAKE[name]().double()
    x = images() if isinstance(model, PixelModel) else frames()
    one, both = (model(rows)[0] if isinstance(model, PixelModel) else model(rows) for rows in (x[1:], x))
    torch.testing.assert_close(one[0], both[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("priority", [None, "depth"])
@pytest.mark.parametrize("kind", [Grid2dPixels, Grid4d])
def test_depth_with_priority_reads_what_the_others_compute_at_the_same_place(
    kind: type[Grid2dPixels | Grid4d], priority: str | None
) -> None:
    """Without priority, one layer with the identity along depth is affine in the pixels that it reads at a place."""
    torch.manual_seed(0)
    model = kind(1, 4, 6, 3, 1, depth=NonLSTM(), priority=priority, **({"patch": 2} if kind is Grid4d else {})).double()

    def output(scale: float) -> Tensor:
        if isinstance(model, Grid4d):
            return model(scale * frames(1)[:, :1])[0, 0, 0, 0]  # the corner at which the scan begins
        return model(scale * torch.ones(1, 1, 1, 6, dtype=torch.float64))[0][0, 0, 1]  # it reads the first pixel

    curvature = (output(2) - 2 * output(1) + output(0)).abs().max()
    assert curvature > 1e-3 if priority else curvature < 1e-14


@pytest.mark.parametrize("kind", [Grid2dPixels, Grid4d])
def test_invalid_priorities_are_refused(kind: type[Grid2dPixels | Grid4d]) -> None:
    with pytest.raises(UserError, match="priority must be depth or null, got 'x'"):
        kind(1, 4, 8, 3, 1, priority="x")


@pytest.mark.parametrize("option", ["space", "depth"])
def test_invalid_cells_are_refused(option: str) -> None:
    with pytest.raises(UserError, match="time must be a cell"):
        PixelLSTM(1, 4, 8, 3, 1, LSTM)  # type: ignore[arg-type]
    for make in (Grid2dPixels, Grid4d):
        with pytest.raises(UserError, match=f"{option} must be a cell"):
            make(1, 4, 8, 3, 1, **{option: LSTM})  # type: ignore[arg-type]
