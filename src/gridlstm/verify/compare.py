"""Comparison of every sweep with the loop on one case."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from gridlstm.cell import HiddenMemory
from gridlstm.engine import choices, fused, matmul
from gridlstm.engine.graphs import using_graphs
from gridlstm.grid import Grid
from gridlstm.models.stacked_lstm import StackedLSTM, StackedLSTMState
from gridlstm.scan import Masks
from gridlstm.verify import loop
from gridlstm.verify.cases import Case, GridCase, StackedCase

Result = dict[str, Tensor]
"""Values and gradients by name; names of gradients begin with "gradient of"."""

EXACT = 1e-11
"""Largest difference in float64, absolute for numbers up to 1 and relative to the largest above."""
TIMES = 8.0
"""Largest ratio of a sweep's error to the error of the loop in the same precision, or of a perturbed loop."""
SHAKES = 8
"""Number of loops with rounding errors added: one loop may be exact by chance in a network that amplifies errors."""
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
"""Relative rounding error of a single number."""
ROUNDING = {"float32": 2e-6, "bfloat16": 2e-2}
"""Error relative to the norm that a sweep may have even if the loop is exact by chance."""


def differences(case: GridCase | StackedCase) -> list[str]:
    """Return a line for each value or gradient of a sweep that differs from the loop's."""
    with _choices_of(case):
        exact, others = _by_loop(case, torch.float64), list[Result]()
        if case.precision != "float64":
            others.append(_by_loop(case, torch.float32))
        lines = _lines(case, exact, others)
        if lines and others:
            others += (_by_loop(case, torch.float64, shake) for shake in range(1, SHAKES + 1))
            lines = _lines(case, exact, others)
        return lines


def _lines(case: GridCase | StackedCase, exact: Result, others: Sequence[Result]) -> list[str]:
    lines = []
    for name, found in _by_sweeps(case):
        for what, x in found.items():
            if why := _differs(case, x.cpu(), exact[what], [other[what] for other in others]):
                lines.append(f"{name}: {what} {why}")
    return lines


@contextmanager
def _choices_of(case: Case) -> Iterator[None]:
    """Compute with the case's threads and engine choices, if this machine supports them."""
    threads, before = torch.get_num_threads(), choices.current()
    torch.set_num_threads(case.threads)
    fused.force_pointwise_step(case.pointwise)
    if case.product != before.product:
        matmul.force_product(case.product)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        choices.force(before)


def _differs(case: Case, found: Tensor, exact: Tensor, others: Sequence[Tensor]) -> str | None:
    """Return how a tensor differs, or None if it agrees. ``others`` are the loop's tensors in the case's precision."""
    if found.shape != exact.shape:
        return f"has the shape {tuple(found.shape)} instead of {tuple(exact.shape)}"
    if not torch.equal(found.isnan(), exact.isnan()):
        return f"is NaN in {int(found.isnan().sum())} places, and should be in {int(exact.isnan().sum())}"
    found, exact = found.detach().double().nan_to_num(0.0), exact.detach().nan_to_num(0.0)
    if not others:
        largest = float((found - exact).abs().max()) if found.numel() else 0.0
        bound = EXACT * max(1.0, float(exact.abs().max())) if found.numel() else 0.0
        return None if largest <= bound else f"differs by {largest:.1e}, more than {bound:.1e}"
    error, *usuals = (float((x.detach().double().nan_to_num(0.0) - exact).norm()) for x in (found, *others))
    usual = max(usuals)
    bound = TIMES * usual + ROUNDING[case.precision] * float(exact.norm())
    return None if error <= bound else f"is off by {error:.1e}, and the loop in {case.precision} by {usual:.1e}"


def _leaves(case: Case, parameters: Sequence[tuple[str, Tensor]], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Request gradients of all parameters and inputs except a frozen share; return those with gradients."""
    everything = {**dict(parameters), **inputs}
    chosen = torch.rand(len(everything), generator=torch.Generator().manual_seed(case.seed + 3)) >= case.frozen
    if case.poisoned:
        chosen[:] = False  # 0 times NaN is NaN, so gradients would depend on the order of products
    for x, trained in zip(everything.values(), chosen.tolist(), strict=True):
        x.requires_grad_(trained)
    return {name: x for name, x in everything.items() if x.requires_grad}


def _with_gradients(
    case: Case, values: Result, leaves: dict[str, Tensor], shaken: Callable[[Tensor], Tensor] = lambda x: x
) -> Iterator[tuple[str, Result]]:
    """Yield values with the gradients of a random projection of them, twice if the case has two backward passes.

    Args:
        shaken: adds rounding errors to the projection, from which every gradient is computed.
    """
    generator = torch.Generator().manual_seed(case.seed + 4)
    # Drawn for all values, so that they do not depend on the set of values with gradients.
    weights = [shaken(torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x)) for x in values.values()]
    outputs = [(x, weight) for x, weight in zip(values.values(), weights, strict=True) if x.requires_grad]
    for suffix in ("", ", second backward pass") if case.twice else ("",):
        gradients: Sequence[Tensor] = []
        if leaves and outputs:
            gradients = torch.autograd.grad(
                [x for x, _ in outputs],
                list(leaves.values()),
                [weight for _, weight in outputs],
                allow_unused=True,
                materialize_grads=True,
                retain_graph=case.twice,
            )
        named = zip(leaves, gradients, strict=bool(gradients))
        yield suffix, {**values, **{f"gradient of {name}": gradient for name, gradient in named}}


def _by_loop(case: GridCase | StackedCase, dtype: torch.dtype, shake: int = 0) -> Result:
    """Return the loop's values and gradients.

    Args:
        shake: seed for rounding errors added to all parameters, inputs and gradients of outputs; 0 for none.
    """
    network = case.network("reference").to(dtype)
    generator = torch.Generator().manual_seed(shake)

    def shaken(x: Tensor) -> Tensor:
        x = x.to(dtype)
        noise = torch.randn(x.shape, dtype=dtype, generator=generator) if shake else torch.zeros_like(x)
        return x * (1 + UNIT.get(case.precision, 0.0) * noise)

    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(shaken(parameter))
    multiply = loop.lowered_product if dtype != torch.float64 and case.precision == "bfloat16" else loop.plain_product
    parameters = list(network.named_parameters())
    if isinstance(case, GridCase):
        sides = [(shaken(h), shaken(m)) for h, m in case.sides()]
        leaves = _leaves(case, parameters, _named(sides))
        leaving = loop.grid(
            case.dimensions, case.priority, case.extents, dict(parameters), sides, _masks(case, dtype), multiply
        )
        values = _named(leaving, "leaving ")
    else:
        x, state = case.inputs()
        h, m = (shaken(vectors) for vectors in state)
        leaves = _leaves(case, parameters, {"h": h, "m": m})
        y, last_h, last_m = loop.stacked(case.cell, case.num_layers, dict(parameters), x, (h, m), multiply)
        values = {"output": y, "last h": last_h, "last m": last_m}
    return next(_with_gradients(case, values, leaves, shaken))[1]


def _by_sweeps(case: GridCase | StackedCase) -> Iterator[tuple[str, Result]]:
    dtype = torch.float64 if case.precision == "float64" else torch.float32
    if isinstance(case, GridCase):
        runs = {sweep: partial(_grid, case, case.network(sweep).to(case.device, dtype)) for sweep in case.sweeps()}
    else:
        runs = {sweep: partial(_stacked, case, case.network(sweep).to(case.device, dtype)) for sweep in case.sweeps()}
    for sweep, run in runs.items():
        # A recorded sweep is computed plainly at first, then recorded, then replayed.
        for again in ("", ", recorded", ", replayed") if case.recorded else ("",):
            lower = torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bfloat16")
            with using_graphs(case.recorded), lower:
                values, leaves = run()
            for suffix, result in _with_gradients(case, values, leaves):
                yield f"sweep={sweep}{again}{suffix}", result


def _grid(case: GridCase, grid: Grid) -> tuple[Result, dict[str, Tensor]]:
    like = next(grid.parameters())
    sides, masks = [HiddenMemory(h.to(like), m.to(like)) for h, m in case.sides()], _masks(case, like.dtype)
    masks = masks and [Masks(*(x if x is None else x.to(like.device) for x in mask)) for mask in masks]
    leaves = _leaves(case, list(grid.named_parameters()), _named(sides))
    leaving = grid(sides, case.extents, masks) if case.cut is None else _in_pieces(case, grid, sides, masks, *case.cut)
    return _named(leaving, "leaving "), leaves


def _in_pieces(
    case: GridCase, grid: Grid, sides: Sequence[HiddenMemory], masks: Sequence[Masks] | None, along: int, place: int
) -> list[HiddenMemory]:
    """Return the outputs of a grid that is computed in two pieces, cut at a position along one dimension."""
    axes = [along - (along > n) for n in range(len(sides))]  # a side has no axis for its own dimension
    others = [n for n in range(len(sides)) if n != along]
    backwards = case.dimensions[along].reverse
    carried, pieces = sides[along], []
    for start, length in ((0, place), (place, case.extents[along] - place))[:: -1 if backwards else 1]:
        entering = list(sides)
        entering[along] = carried
        for n in others:
            entering[n] = HiddenMemory(*(x.narrow(axes[n], start, length) for x in sides[n]))
        extents = (*case.extents[:along], length, *case.extents[along + 1 :])
        here = masks and [
            Masks(*(x if x is None or x.dim() == 0 else x.narrow(along, start, length) for x in mask)) for mask in masks
        ]
        pieces.append(grid(entering, extents, here))
        carried = pieces[-1][along]
    if backwards:
        pieces.reverse()
    leaving = [carried] * len(sides)
    for n in others:
        leaving[n] = HiddenMemory(*(torch.cat(parts, axes[n]) for parts in zip(*(p[n] for p in pieces), strict=True)))
    return leaving


def _stacked(case: StackedCase, network: StackedLSTM) -> tuple[Result, dict[str, Tensor]]:
    x, state = case.inputs()
    x, (h, m) = x.to(case.device), (vectors.to(network.input.weight) for vectors in state)
    leaves = _leaves(case, list(network.named_parameters()), {"h": h, "m": m})
    y, last = network(x, StackedLSTMState(h, m))
    return {"output": y, "last h": last.h, "last m": last.m}, leaves


def _masks(case: GridCase, dtype: torch.dtype) -> list[Masks] | None:
    masks = case.masks()
    return masks and [mask.in_type(dtype) for mask in masks]


def _named(pairs: Sequence[tuple[Tensor, Tensor]], prefix: str = "side ") -> Result:
    both = chain.from_iterable(((f"{n}.h", h), (f"{n}.m", m)) for n, (h, m) in enumerate(pairs))
    return {prefix + name: x for name, x in both}
