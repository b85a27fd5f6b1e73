"""What the benchmark compares: sweeps, ``torch.nn.LSTM`` and this machine's matrix products.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gridlstm.cell import LSTM, HiddenMemory
from gridlstm.engine import matmul
from gridlstm.engine.dispatch import Sweep
from gridlstm.errors import UserError
from gridlstm.scan import Block, Weights, scan


@dataclass(frozen=True)
class Shape:
    """A tied 2-LSTM."""

    L: int
    d: int
    T: int
    B: int

    def __str__(self) -> str:
        return f"{self.L}x{self.d} T{self.T} B{self.B}"

    def flops(self, backward: bool) -> float:
        """Of all matrix products: 32 d^2 a block and row forward, twice that again backward."""
        return (96 if backward else 32) * self.d**2 * self.T * self.L * self.B


Contender = Callable[[bool], None]
"""Runs once, with or without the backward pass."""


def grid_contender(
    sweep: Sweep, shape: Shape, stages: tuple[tuple[int, ...], ...] = ((0, 1),), untied: bool = False
) -> Contender:
    """A 2-D grid with the paper's cells; agreement with the reference is checked at a small size first."""
    _check_agreement(sweep, stages, untied)
    block, weights, sides, leaves = _problem(shape, stages, untied, torch.float32)

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            time, depth = sweep(block, weights, sides, (shape.T, shape.L), None)
            if backward:
                torch.autograd.grad(depth.h.sum() + depth.m.sum() + time.h.sum(), leaves)

    return run


def _problem(
    shape: Shape, stages: tuple[tuple[int, ...], ...], untied: bool, dtype: torch.dtype
) -> tuple[Block, list[Weights], list[HiddenMemory], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype)

    L, d, T, B = shape.L, shape.d, shape.T, shape.B
    block = Block((LSTM(), LSTM()), (d, d), stages, untied=(1,) if untied else ())
    copies = (L,) if untied else ()
    constant = LSTM().constant_bias(d)
    assert constant is not None
    bias = constant.to(dtype).expand(*copies, -1)
    weights = [Weights((random(*copies, 4 * d, 2 * d) / (2 * d) ** 0.5).requires_grad_(), bias) for _ in range(2)]
    sides = [HiddenMemory(*(random(n, B, d).requires_grad_() for _ in range(2))) for n in (L, T)]
    return block, weights, sides, [*(w.weight for w in weights), *(x for side in sides for x in side)]


def _check_agreement(sweep: Sweep, stages: tuple[tuple[int, ...], ...], untied: bool) -> None:
    """Raises UserError unless values and gradients equal the reference's in float64 and, to rounding, in float32."""
    # float64 sums in another order; float32 sums of up to 1e3 terms.
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        results = []
        for contender in (sweep, scan):
            block, weights, sides, leaves = _problem(Shape(4, 24, 5, 3), stages, untied, dtype)
            out = [x for side in contender(block, weights, sides, (5, 4), None) for x in side]
            results.append([*out, *torch.autograd.grad(sum(x.sum() for x in out), leaves)])  # type: ignore[arg-type]
        error = max((a - b).abs().max().item() for a, b in zip(*results, strict=True))
        if not error < tolerance:
            raise UserError(f"{sweep} differs from the reference by {error:.1e} in {dtype}: nothing was timed.")


def lstm_contender(shape: Shape, layers: int) -> Contender:
    """``torch.nn.LSTM`` of the same width. A grid block is as much arithmetic as two of its layers."""
    network = nn.LSTM(shape.d, shape.d, layers)
    x = torch.randn(shape.T, shape.B, shape.d, requires_grad=True)

    def run(backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            y, _ = network(x)
            if backward:
                torch.autograd.grad(y.sum(), [x, *network.parameters()])

    return run


def product_contender(shape: Shape, product: matmul.Product, dtype: torch.dtype) -> Contender:
    """The products of a widest diagonal and of the weight gradient, as often as the sweep's arithmetic has them."""
    rows, K, d = min(shape.T, shape.L) * shape.B, shape.T * shape.L * shape.B, shape.d
    x, z = torch.randn(rows, 2 * d, dtype=dtype), torch.randn(rows, 8 * d, dtype=dtype)
    weight, transposed = torch.randn(8 * d, 2 * d, dtype=dtype), torch.randn(2 * d, 8 * d, dtype=dtype)
    X, Z = torch.randn(K, 2 * d, dtype=dtype), torch.randn(K, 8 * d, dtype=dtype)
    gradient = torch.empty(8 * d, 2 * d, dtype=dtype)

    def run(backward: bool) -> None:
        with matmul.using(product):
            for _ in range(round(K / rows)):
                torch.mm(x, transposed, out=z)
                if backward:
                    torch.mm(z, weight, out=x)
            if backward:
                torch.mm(Z.t(), X, out=gradient)

    return run
