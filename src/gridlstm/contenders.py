"""Contenders of the benchmark: sweeps, ``torch.nn.LSTM`` and this device's matrix products.

Shape legend: B batch rows, T time steps, L layers, d hidden size, N dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.engine import fused, matmul
from gridlstm.engine.dispatch import Sweep, SweepName
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.graphs import Recorded, using_graphs
from gridlstm.engine.mkl import PackedWeight
from gridlstm.engine.plan import plan
from gridlstm.errors import UserError
from gridlstm.grid import Dimension, Grid
from gridlstm.scan import Block, Weights, scan


@dataclass(frozen=True)
class Shape:
    """A grid of LSTM cells of one size.

    Args:
        extents: (T, L), or more extents.
        d: units of every dimension.
        B: batch rows.
        corners: number of grids in sequence, each scanning from its own corner: 1, or 4 for a network over images.
    """

    extents: tuple[int, ...]
    d: int
    B: int
    corners: int = 1

    @property
    def layers(self) -> int:
        """L, the last extent."""
        return self.extents[-1]

    def __str__(self) -> str:
        if len(self.extents) == 2:
            return f"{self.layers}x{self.d} T{self.extents[0]} B{self.B}"
        times = f"{self.corners} corners of " if self.corners > 1 else ""
        return f"{times}{'x'.join(map(str, self.extents))} d{self.d} B{self.B}"

    def flops(self, backward: bool) -> float:
        """Return the FLOPs of all matrix products: 8 N^2 d^2 per block and row; the backward pass adds twice as many.

        A block has N transforms of 4 d x N d.
        """
        forward = 8 * len(self.extents) ** 2 * self.d**2 * prod(self.extents) * self.B * self.corners
        return 3 * forward if backward else forward


Contender = Callable[[bool], object]
"""Function that runs once, with or without the backward pass."""


def grid_contender(
    sweep: Sweep,
    shape: Shape,
    priority: bool = False,
    untied: bool = False,
    product_dtype: torch.dtype | None = None,
    device: str = "cpu",
    step: PointwiseStep = "fused",
) -> Contender:
    """Build a grid with the paper's cells, after checking at a small size that it agrees with the reference.

    Args:
        priority: let the last dimension see the new hidden vectors of the others.
        untied: give every layer its own weights.
        product_dtype: the type of matrix products under autocast.
        step: the pointwise step to use if this device has it; the eager step is used otherwise.
    """
    N = len(shape.extents)
    stages = ((*range(N - 1),), (N - 1,)) if priority else ((*range(N),),)
    with fused.using_step(step):
        _check_agreement(sweep, stages, untied, product_dtype, device)
    block, weights, sides, leaves = _problem(shape, stages, untied, torch.float32, device)

    def run(backward: bool) -> None:
        with fused.using_step(step), torch.set_grad_enabled(backward):
            with torch.autocast(device, product_dtype, enabled=product_dtype is not None):
                leaving = sweep(block, weights, sides, shape.extents, None)
            if backward:
                torch.autograd.grad(leaving[-1].m.sum() + sum(side.h.sum() for side in leaving), leaves)

    return _ready(run) if isinstance(sweep, Recorded) else run


def _ready(run: Contender) -> Contender:
    """Return the contender after its sweeps are recorded: at their second run."""
    for backward in (False, False, True, True):
        run(backward)
    return run


def _problem(
    shape: Shape, stages: tuple[tuple[int, ...], ...], untied: bool, dtype: torch.dtype, device: str
) -> tuple[Block, list[Weights], list[HiddenMemory], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype).to(device)

    N, d, B = len(shape.extents), shape.d, shape.B
    block = Block((LSTM(),) * N, (d,) * N, stages, untied=(N - 1,) if untied else ())
    copies = (shape.layers,) if untied else ()
    constant = LSTM().constant_bias(d, torch.empty(0, dtype=dtype, device=device))
    assert constant is not None
    bias = constant.expand(*copies, -1)
    weights = [Weights((random(*copies, 4 * d, N * d) / (N * d) ** 0.5).requires_grad_(), bias) for _ in range(N)]
    leading = [tuple(extent for axis, extent in enumerate(shape.extents) if axis != n) for n in range(N)]
    sides = [HiddenMemory(*(random(*rest, B, d).requires_grad_() for _ in range(2))) for rest in leading]
    return block, weights, sides, [*(w.weight for w in weights), *(x for side in sides for x in side)]


def _check_agreement(
    sweep: Sweep, stages: tuple[tuple[int, ...], ...], untied: bool, product_dtype: torch.dtype | None, device: str
) -> None:
    """Raise UserError unless values and gradients equal the reference's in float64 and, up to rounding, in float32.

    The reference runs on the CPU.
    """
    extents = (5, 4, 3)[: sum(map(len, stages))]
    # Tolerances, relative to the largest number of a result: the sweep sums in another order in float64, and sums up to
    # 1e3 terms in float32. bfloat16 has 8 bits, and rounding adds up along the blocks.
    checks = [(torch.float64, 1e-10), (torch.float32, 1e-4)] if product_dtype is None else [(torch.float32, 3e-2)]
    for dtype, tolerance in checks:
        results = []
        for contender, place, lowered in ((sweep, device, product_dtype is not None), (scan, "cpu", False)):
            block, weights, sides, leaves = _problem(Shape(extents, 24, 3), stages, untied, dtype, place)
            for _ in range(2 if isinstance(contender, Recorded) else 1):  # it computes plainly at first
                with torch.autocast(place, product_dtype, enabled=lowered):
                    out = [x for side in contender(block, weights, sides, extents, None) for x in side]
                gradients = torch.autograd.grad(sum(x.sum() for x in out), leaves)  # type: ignore[arg-type]
            results.append([x.cpu() for x in (*out, *gradients)])
        least = torch.finfo(torch.float32).tiny
        errors = [(a - b).abs().max() / b.abs().max().clamp_min(least) for a, b in zip(*results, strict=True)]
        error = torch.stack(errors).max().item()  # NaN if one is
        if not error < tolerance:
            where = f"{dtype} on {device} with the step {fused.pointwise_step()}"
            raise UserError(f"{sweep} differs from the reference by {error:.1e} in {where}. Nothing was timed.")


def corners_contender(
    sweep: SweepName, shape: Shape, device: str = "cpu", step: PointwiseStep = "fused", recorded: bool = False
) -> Contender:
    """Build grids over an image, each from its own corner, after checking a small size against the reference."""
    small = Shape((3, 4, 1), 24, 2, shape.corners)
    found = _through_corners(sweep, small, torch.float64, device, step, recorded)(True)
    expected = _through_corners("reference", small, torch.float64, "cpu", step)(True)
    error = max((a.cpu() - b).abs().max().item() for a, b in zip(found, expected, strict=True))
    if not error < 1e-10:  # the sweep sums in another order
        raise UserError(f"sweep={sweep} differs from the reference by {error:.1e}: nothing was timed.")
    return _through_corners(sweep, shape, torch.float32, device, step, recorded)


def _through_corners(
    sweep: SweepName, shape: Shape, dtype: torch.dtype, device: str, step: PointwiseStep, recorded: bool = False
) -> Callable[[bool], list[Tensor]]:
    """Return a function that runs the grids of a shape and returns the top vectors, or with backward the gradients."""
    (Y, X, _), B, d = shape.extents, shape.B, shape.d
    generator = torch.Generator().manual_seed(0)
    grids = [
        Grid(
            [
                Dimension("y", LSTM(), d, reverse=bool(corner & 1)),
                Dimension("x", LSTM(), d, reverse=bool(corner & 2)),
                Dimension("depth", LSTM(), d),
            ],
            sweep=sweep,
        ).to(device, dtype)
        for corner in range(shape.corners)
    ]
    weights = [weight for grid in grids for weight in grid.parameters()]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=dtype) / (3 * d) ** 0.5)
    bottom = HiddenMemory(
        *(torch.randn(Y, X, B, d, generator=generator, dtype=dtype).to(device).requires_grad_() for _ in range(2))
    )
    y, x = (HiddenMemory(*torch.zeros(2, extent, 1, B, d, dtype=dtype, device=device)) for extent in (X, Y))

    def run(backward: bool) -> list[Tensor]:
        with fused.using_step(step), using_graphs(recorded), torch.set_grad_enabled(backward):
            above = bottom
            for grid in grids:
                *_, above = grid([y, x, above], shape.extents)
            if backward:
                return list(torch.autograd.grad(above.h.sum() + above.m.sum(), [*bottom, *weights]))
            return list(above)

    if recorded:
        _ready(run)
    return run


def lstm_contender(
    shape: Shape, layers: int, device: str = "cpu", product_dtype: torch.dtype | None = None
) -> Contender:
    """Build a ``torch.nn.LSTM`` of the same width. A grid block needs as much arithmetic as two of its layers."""
    network = nn.LSTM(shape.d, shape.d, layers, device=device)
    x = torch.randn(shape.extents[0], shape.B, shape.d, device=device, requires_grad=True)

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            with torch.autocast(device, product_dtype, enabled=product_dtype is not None):
                y, _ = network(x)
            if backward:
                torch.autograd.grad(y.sum(), [x, *network.parameters()])

    return run


def product_contender(shape: Shape, product: matmul.Product, dtype: torch.dtype, device: str = "cpu") -> Contender:
    """Build the matrix products of a widest diagonal and of the weight gradient, with the arithmetic of a sweep."""
    D = len(shape.extents) * shape.d
    rows = plan(shape.extents, (), torch.device("cpu"), "diagonal").largest * shape.B
    K = prod(shape.extents) * shape.B
    x, z, weight, transposed, X, Z, gradient = (
        torch.randn(*size, dtype=dtype, device=device)
        for size in ((rows, D), (rows, 4 * D), (4 * D, D), (D, 4 * D), (K, D), (K, 4 * D), (4 * D, D))
    )

    def prepared(y: Tensor) -> Callable[[Tensor, Tensor], object]:
        if product == "packed":
            return PackedWeight(y).multiply
        return lambda left, out: matmul.multiply(left, y, out, None)

    def run(backward: bool) -> None:
        with matmul.using(product):
            for _ in range(shape.corners):
                multiply = prepared(transposed)
                for _ in range(round(K / rows)):
                    multiply(x, z)
                if backward:
                    multiply = prepared(weight)
                    for _ in range(round(K / rows)):
                        multiply(z, x)
                    matmul.multiply_transposed(Z, X, gradient, None)

    return run
