"""Random inputs for grids, and the comparison of a sweep with the reference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gridlstm.cell import HiddenMemory
from gridlstm.engine.dispatch import Sweep
from gridlstm.scan import Block, Masks, Weights, scan

# float64 sums of fewer than 1e4 terms of order 1, in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
DOUBLE = torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A block, and a grid of such blocks."""

    block: Block
    extents: tuple[int, ...]
    B: int
    masked: tuple[str, ...] = ()
    """Masks of every dimension: ``keep`` (as for padding), ``mix`` (keep masks of floats), ``drop`` (floats), and
    ``select`` (drop as booleans with a scale that differs between dimensions); ``select last`` for the last alone."""
    scale: float = 1.0
    """Standard deviation of weights. At 1, a wide grid amplifies roundings without limit."""


def random_inputs(case: Case, like: Tensor = DOUBLE) -> tuple[list[Weights], list[HiddenMemory]]:
    """Return weights and sides, with the type and device of ``like``."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(like).requires_grad_()

    block, N = case.block, len(case.extents)
    copies = tuple(case.extents[axis] for axis in block.untied)
    D = sum(block.sizes)
    weights = []
    for cell, size in zip(block.cells, block.sizes, strict=True):
        constant = cell.constant_bias(size, like)
        bias = random(*copies, cell.num_gates * size) if cell.has_bias else None
        if constant is not None:
            bias = constant.expand(*copies, -1)
        vectors = tuple(random(*copies, length) for length in cell.vector_lengths(size).values())
        weight = (case.scale * random(*copies, cell.num_gates * size, D)).detach().requires_grad_()
        weights.append(Weights(weight, bias, vectors))
    for n, owner in block.same:
        weights[n] = weights[n]._replace(weight=weights[owner].weight, bias=weights[owner].bias)
    sides = []
    for n in range(N):
        leading = (*(extent for axis, extent in enumerate(case.extents) if axis != n), case.B)
        size = block.sizes[n]
        sides.append(HiddenMemory(random(*leading, size), random(*leading, block.cells[n].memory_size(size))))
    return weights, sides


def random_masks(case: Case, like: Tensor = DOUBLE) -> list[Masks] | None:
    """Return masks that differ in every place and dimension; some of them are broadcast."""
    generator = torch.Generator().manual_seed(2)

    def random(length: int) -> Tensor:
        return torch.rand(*case.extents, case.B, length, dtype=torch.float64, generator=generator)

    if not case.masked:
        return None
    masks = []
    for n, (cell, size) in enumerate(zip(case.block.cells, case.block.sizes, strict=True)):
        mask = Masks(drop=2 * random(size).round() if "drop" in case.masked else None)
        if "select" in case.masked or ("select last" in case.masked and n == len(case.extents) - 1):
            mask = mask._replace(drop=random(size) < 0.5, scale=1 + random(1).mean() if masks else None)
        if "mix" in case.masked:
            mask = mask._replace(keep_h=random(1), keep_m=random(cell.memory_size(size)))
        if "keep" in case.masked:
            mask = mask._replace(keep_h=random(1) < 0.5, keep_m=random(1)[-1:] < 0.5)
        masks.append(Masks(*(x if x is None else x.to(like.device) for x in mask)).in_type(like.dtype))
    return masks


def tensors_of(weights: list[Weights], sides: list[HiddenMemory]) -> list[Tensor]:
    """Return all differentiable inputs."""
    everything = [x for w in weights for x in (w.weight, w.bias, *w.vectors)] + [x for side in sides for x in side]
    return [x for x in everything if x is not None and x.requires_grad]


def values_and_gradients(
    sweep: Sweep, case: Case, weights: list[Weights], sides: list[HiddenMemory]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of the grid, and the gradients of a random projection of them for all inputs."""
    leaves = tensors_of(weights, sides)
    masks = random_masks(case, sides[0].h)
    out = [x for side in sweep(case.block, weights, sides, case.extents, masks) for x in side]
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x)).sum() for x in out)
    assert isinstance(loss, Tensor)
    return out, list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def assert_equals_reference(
    sweep: Sweep, case: Case, like: Tensor = DOUBLE, tolerance: dict[str, float] = EXACT
) -> None:
    """Compare a sweep of tensors with the type and device of ``like`` with the reference in float64 on the CPU."""
    expected = values_and_gradients(scan, case, *random_inputs(case))
    found = values_and_gradients(sweep, case, *random_inputs(case, like))
    for got, exact in zip(found, expected, strict=True):
        torch.testing.assert_close([x.detach().cpu().double() for x in got], exact, **tolerance)
