"""Base classes of models, and their input projections.

Shape legend: B batch rows, T time steps, L layers, d hidden size, (Y, X) rows and columns of places of an image.
"""

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import check_state_vector, fan_in_uniform
from gridlstm.engine.operands import check_device, check_factor
from gridlstm.errors import UserError, check_above_zero, check_at_least_one

State = Any
"""A NamedTuple of tensors, each (L, B, ...): batch is dimension 1, as in ``torch.nn.LSTM``."""

S = TypeVar("S")


class Model(nn.Module):
    """A network without vocabulary, loss or logging."""

    output_size: int
    """Length of the output vector of one step."""
    init_bound: float | None = None
    """If set, the model started its weights in U(-init_bound, init_bound), and the read-out does too."""

    def set_progress(self, share: float) -> None:
        """Take the completed share of the training, 0 to 1, before each training batch: noise may depend on it."""


class SequenceModel(Model):
    """``forward(x, state) -> (y, state)``: no vocabulary, no loss, no logging.

    x is (B, T) int64 symbols, which stand for one-hot vectors, or (B, T, input_size) floats; y is
    (B, T, output_size). ``state=None`` starts from ``initial_state``. If each call gets the state that the previous one
    returned, a sequence in pieces gives the same result as the whole. The module itself stores no state.
    """

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first step, on the module's device and in its dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_state")

    def state_before(self, state: S | None, batch_size: int) -> S:
        """Return the given state, which may be a plain tuple, or for None the initial state.

        Raises:
            UserError: if the number, shapes, data types or device of its tensors do not fit.
        """
        if state is None:
            return self.initial_state(batch_size)
        expected = self.initial_state(0)  # has no rows, so takes no memory
        names = expected._fields
        if not isinstance(state, tuple | list) or len(state) != len(names):
            got = f"{len(state)} values" if isinstance(state, tuple | list) else type(state).__name__
            raise UserError(f"expected the state that a call returned, a tuple of {', '.join(names)}, got {got}.")
        for name, value, like in zip(names, state, expected, strict=True):
            check_state_vector(name, value, (like.shape[0], batch_size, *like.shape[2:]), like)
        return type(expected)(*state)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    # nn.Module's own __call__ is untyped.
    def __call__(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        return cast(tuple[Tensor, State], super().__call__(x, state))


class VectorModel(Model):
    """``forward(x) -> y``: a network along depth only, without time and so without state.

    x is (B, input_size) floats, the whole input at once, such as the bits of a string; y is (B, output_size).
    """

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    # nn.Module's own __call__ is untyped.
    def __call__(self, x: Tensor) -> Tensor:
        return cast(Tensor, super().__call__(x))


class ImageModel(Model):
    """``forward(images) -> y``: features at every place of a map over the image.

    images is (B, channels, height, width) floats; y is (B, Y, X, output_size). A task reads all places, their mean, or
    one place.
    """

    map_size: tuple[int, int]
    """(Y, X)"""
    last_place: tuple[int, int] | None = None
    """The place where the last layer's scan ends, row and column; None for a model without such a place."""

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    # nn.Module's own __call__ is untyped.
    def __call__(self, images: Tensor) -> Tensor:
        return cast(Tensor, super().__call__(images))


class PixelModel(Model):
    """``forward(images, state) -> (y, state)``: features of every pixel, from the pixels before it in raster order.

    images is (B, channels, rows, width) floats, whole images or rows of them; y is (B, rows, width, output_size). y at
    row i and column j is a function of the rows above i and of the columns before j in row i.

    ``state=None`` starts at the first row. If each call gets the state that the previous one returned, an image in
    bands of rows gives the same result as the whole. The module itself stores no state.
    """

    def forward(self, images: Tensor, state: State = None) -> tuple[Tensor, State]:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    # nn.Module's own __call__ is untyped.
    def __call__(self, images: Tensor, state: State = None) -> tuple[Tensor, State]:
        return cast(tuple[Tensor, State], super().__call__(images, state))


class VideoModel(Model):
    """``forward(frames) -> y``: features at every place of a map over each frame, from it and the frames before it.

    frames is (B, T, channels, height, width) floats; y is (B, T, Y, X, output_size).
    """

    map_size: tuple[int, int]
    """(Y, X)"""

    def forward(self, frames: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    # nn.Module's own __call__ is untyped.
    def __call__(self, frames: Tensor) -> Tensor:
        return cast(Tensor, super().__call__(frames))


def check_sizes(input_size: int, hidden_size: int, num_layers: int) -> None:
    """Raise UserError for a network without inputs, units or layers."""
    check_at_least_one(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)


@torch.no_grad()
def start_weights_within(model: nn.Module, bound: float) -> None:
    """Initialize every weight with U(-bound, bound) and leave biases unchanged.

    Raises:
        UserError: if the bound is not above 0 and finite.
    """
    check_above_zero(init_bound=bound)
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.uniform_(-bound, bound)


def start_for_relu(layers: Iterable[nn.Linear | nn.Conv2d]) -> None:
    """Initialize layers so that ReLUs keep the variance from each to the next (He et al. 2015), their biases with 0."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class InputProjection(nn.Module):
    """x -> W x without bias; for symbols, the column of W that the one-hot product selects.

    Args:
        input_size: symbols, or features per step.
        output_size: length of the projection.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.weight = nn.Parameter(torch.empty(input_size, output_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # A one-hot product has a single term, so its fan-in is 1: projections start with unit variance.
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, T) symbols or (B, T, input_size) floats to (B, T, output_size).

        Raises:
            UserError: if the shape, data type or device of x does not fit, or a symbol is out of range. Under autocast,
                x may have another float type than the weights, except float64.
        """
        if x.dim() == 2 and x.dtype in (torch.int64, torch.int32):
            check_device("x", x, self.weight)
            try:
                return F.embedding(x, self.weight)
            except IndexError as error:  # on the CPU; a GPU reports it at the next synchronization
                low, high = (int(value) for value in x.aminmax())
                raise UserError(f"expected symbols from 0 to {self.input_size - 1}, got {low} to {high}.") from error
        if x.dim() == 3 and x.shape[-1] == self.input_size and x.is_floating_point():
            check_factor("x", x, self.weight)
            return x @ self.weight
        raise UserError(
            f"expected symbols (B, T) of type int64 or int32, or floats (B, T, {self.input_size}), "
            f"got {x.dtype} of shape {tuple(x.shape)}."
        )


class VectorProjection(nn.Linear):
    """x -> W x without bias, for whole vectors x.

    Args:
        input_size: length of x.
        output_size: length of the projection.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size, bias=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fan_in_uniform(self.weight, 1.0)  # projects inputs of unit variance, such as -1 and 1, to unit variance

    def forward(self, x: Tensor) -> Tensor:
        """Project (B, input_size) to (B, output_size).

        Raises:
            UserError: if the shape, data type or device of x does not fit. Under autocast, x may have another float
                type than the weights, except float64.
        """
        if x.dim() != 2 or x.shape[-1] != self.in_features or not x.is_floating_point():
            raise UserError(f"expected floats (B, {self.in_features}), got {x.dtype} of shape {tuple(x.shape)}.")
        check_factor("x", x, self.weight)
        return super().forward(x)


def check_images(images: Tensor, channels: int, height: int, width: int, weight: Tensor) -> None:
    """Raise UserError unless images are floats (B, channels, height, width), of the type and on the device of weight.

    Under autocast, images and weight may have different float types, except float64.
    """
    if images.dim() != 4 or images.shape[1:] != (channels, height, width) or not images.is_floating_point():
        raise UserError(
            f"expected images (B, {channels}, {height}, {width}) of floats, got {images.dtype} of shape "
            f"{tuple(images.shape)}."
        )
    check_factor("images", images, weight)


def check_rows(images: Tensor, channels: int, width: int, weight: Tensor) -> None:
    """Raise UserError unless images are rows (B, channels, rows, width), of the type and on the device of weight."""
    if images.dim() != 4 or (images.shape[1], images.shape[3]) != (channels, width):
        raise UserError(
            f"expected rows of images (B, {channels}, rows, {width}), got shape {tuple(images.shape)}. Give "
            f"images of the size that the network was built for."
        )
    check_factor("images", images, weight)


def check_frames(frames: Tensor) -> None:
    """Raise UserError unless frames are (B, T, channels, height, width) with at least one frame."""
    if frames.dim() != 5 or frames.shape[1] < 1:
        raise UserError(
            f"expected frames (B, T, channels, height, width), got shape {tuple(frames.shape)}. Give at least one "
            f"frame for each row."
        )


class Patches(nn.Module):
    """Patches of an image, p x p pixels without overlap, each projected to W x without bias.

    Args:
        channels, height, width: of the images.
        patch: p, a divisor of height and width.
        output_size: length of the projection.

    Raises:
        UserError: patches of this size do not cover the image.
    """

    def __init__(self, channels: int, height: int, width: int, patch: int, output_size: int) -> None:
        super().__init__()
        check_at_least_one(channels=channels, height=height, width=width, patch=patch)
        if height % patch or width % patch:
            fitting = [str(p) for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
            raise UserError(
                f"patch must divide the {height} x {width} pixels of an image, got {patch}: choose one of "
                f"{', '.join(fitting)}."
            )
        self.image_size = channels, height, width
        self.patch = patch
        self.map_size = height // patch, width // patch
        self.weight = nn.Parameter(torch.empty(output_size, channels * patch**2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fan_in_uniform(self.weight, 1.0)  # pixels of unit variance are projected to unit variance

    def forward(self, images: Tensor) -> Tensor:
        """Return the projections (Y, X, B, output_size) of images (B, channels, height, width).

        Raises:
            UserError: see ``check_images``.
        """
        check_images(images, *self.image_size, self.weight)
        (Y, X), p = self.map_size, self.patch
        pixels = images.unflatten(3, (X, p)).unflatten(2, (Y, p)).permute(2, 4, 0, 1, 3, 5)  # (Y, X, B, channels, p, p)
        return F.linear(pixels.flatten(3), self.weight)
