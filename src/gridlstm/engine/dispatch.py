"""Picks the sweep. All sweeps give the same values and gradients, so this is a matter of speed alone."""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from gridlstm.cell import LSTM, Cell, HiddenMemory
from gridlstm.engine.chain import Chained, chain, reference_chain
from gridlstm.engine.fused import can_fuse
from gridlstm.engine.half_step import half_step, half_step_fits
from gridlstm.engine.layer_major import layer_major, layer_major_fits
from gridlstm.engine.matmul import check_factor
from gridlstm.engine.wavefront import recomputing_wavefront, wavefront
from gridlstm.errors import UserError
from gridlstm.scan import Block, Masks, Weights, scan

log = logging.getLogger(__name__)

Sweep = Callable[
    [Block, Sequence[Weights], Sequence[HiddenMemory], Sequence[int], Sequence[Masks] | None], list[HiddenMemory]
]
SweepName = Literal["auto", "reference", "wavefront", "recompute", "layer-major", "half-step"]
ChainName = Literal["auto", "reference"]


def check_sweep_name(name: str, names: Any = SweepName) -> None:
    """Raises UserError unless ``name`` is one of ``names``, ``SweepName`` or ``ChainName``."""
    if name not in get_args(names):
        raise UserError(f"sweep must be one of {', '.join(get_args(names))}, got {name!r}.")


def check_sweep_fits(name: SweepName, block: Block) -> None:
    """Refuses what only some blocks allow.

    Raises:
        UserError: when "layer-major" or "half-step" is asked of a block that needs another order.
    """
    if name == "half-step" and not half_step_fits(block):
        raise UserError(
            "sweep=half-step needs two stages with equally many gates, as priority makes them, and tied weights: "
            "choose sweep=auto, set priority or tie the weights."
        )
    if name == "layer-major" and not layer_major_fits(block):
        raise UserError(
            "sweep=layer-major needs at least two dimensions, the last of them computed in the last stage, and weights "
            "untied along no other: choose sweep=auto, change priority or tie the weights."
        )


def sweep_named(name: SweepName, block: Block, extents: Sequence[int], like: Tensor) -> Sweep:
    """The sweep to run: the named one, or with "auto" the fastest known for this grid on this device. Where plain
    operations are needed, the reference.

    Args:
        like: any tensor that enters the grid, (..., B, size).

    Raises:
        UserError: see ``check_sweep_fits``.
    """
    # Again: the name may be another one than when the grid was made.
    check_sweep_fits(name, block)
    check_fixed(extents)
    if needs_plain_ops(like):
        return scan
    if name == "auto":
        name = "layer-major" if _prefers_layers(block, extents, like) else "wavefront"
        if not torch.compiler.is_compiling():  # a compiled caller would be cut in two here
            _log_once(f"sweep: {name} (auto)")
    return SWEEPS[name]


def chain_named(name: ChainName, cell: Cell, x: Tensor) -> Callable[[Any, Weights, Tensor, HiddenMemory], Chained]:
    """How a layer of a stacked network is computed: by the plain loop, or with "auto" by the fast one where it pays.

    Args:
        x: what enters the layer, (T, B, e).

    Raises:
        UserError: see ``check_fixed``.
    """
    check_fixed(x.shape[:1])
    fast = (type(cell) is LSTM or can_fuse(cell, x)) and len(x) >= CHAIN_STEPS and not needs_plain_ops(x)
    return chain if name == "auto" and fast else reference_chain


def check_fixed(extents: Sequence[int]) -> None:
    """Raise UserError unless these are numbers, and not what stands for any number in a traced program."""
    if any(type(extent) is not int for extent in extents):
        raise UserError(
            f"a traced program unrolls all blocks and steps. Expected fixed numbers of them, got {tuple(extents)}. Use "
            f"torch.export.export, with a fixed number of steps (its batch may be dynamic), not torch.jit.trace."
        )


def needs_plain_ops(like: Tensor) -> bool:
    """Whether plain operations are needed: by torch.export, torch.func, a tracer or derivatives in forward mode, or as
    tensors have no memory.
    """
    if torch.compiler.is_exporting():
        return True
    if torch.compiler.is_dynamo_compiling():  # the fast sweeps run as they are
        return False
    modes = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
    return (
        bool(torch._C._are_functorch_transforms_active())
        or like.device.type == "meta"
        or type(like) not in (Tensor, Parameter)  # such as FakeTensorMode's
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)
        or torch.autograd.forward_ad._current_level >= 0  # hand-written gradients go backward alone
    )


def _prefers_layers(block: Block, extents: Sequence[int], like: Tensor) -> bool:
    """Untied weights leave a diagonal with products of B rows each, where a layer has one with all its rows.

    But a layer takes as many steps, one after the other, as a whole grid of diagonals: it pays only where a step's
    arithmetic outweighs its start. That was measured on CPUs alone.
    """
    if not block.untied or not layer_major_fits(block) or like.device.type != "cpu":
        return False
    width, (*outer, _) = sum(block.sizes[:-1]), extents
    blocks_at_once = prod(outer) / (sum(outer) - len(outer) + 1)  # of a diagonal of average length
    return 2 * like.shape[-2] * blocks_at_once * width * 4 * width > STEP_FLOPS


# Arithmetic that takes as long as starting an operation, 10 microseconds, at a CPU's 100 GF/s (10x32 T20 B1 untied:
# diagonals 2.6 times as fast; 20x64 T12 B15: equal; 43x100 T42 B15: layers 1.3 times).
STEP_FLOPS = 1e6

# Below, what a layer costs to set up decides: 15 rows of 45 units take 520 microseconds instead of 430 at 2 steps, 600
# instead of 660 at 4. Cells whose gradient is left to autograd are as fast or up to 3 times faster in the plain loop.
CHAIN_STEPS = 4

SWEEPS: dict[SweepName, Sweep] = {
    "reference": scan,
    "wavefront": wavefront,
    "recompute": recomputing_wavefront,
    "layer-major": layer_major,
    "half-step": half_step,
}


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    log.info(message)


def pairs(sides: Sequence[tuple[Tensor, Tensor]]) -> list[HiddenMemory]:
    """Plain tuples as what they stand for. Raises UserError for sides that are no pairs of tensors."""
    for n, side in enumerate(sides):
        if not isinstance(side, tuple | list) or [isinstance(x, Tensor) for x in side] != [True, True]:
            got = [type(x).__name__ for x in side] if isinstance(side, tuple | list) else type(side).__name__
            raise UserError(f"side {n}: expected HiddenMemory(h, m), or another pair of tensors, got {got}.")
    return [HiddenMemory(*side) for side in sides]


def check_sides(block: Block, sides: Sequence[HiddenMemory], extents: Sequence[int]) -> None:
    """Raises UserError unless what enters the grid fits it."""
    N = len(block.cells)
    if len(extents) != N or len(sides) != N or min(extents) < 1:
        raise UserError(
            f"expected {N} sides and {N} extents of at least 1, got {len(sides)} sides and extents {tuple(extents)}."
        )
    reference = sides[0].h
    B = reference.shape[-2] if reference.dim() > 1 else 1
    for n, (side, size, cell) in enumerate(zip(sides, block.sizes, block.cells, strict=True)):
        leading = (*(extent for axis, extent in enumerate(extents) if axis != n), B)
        for name, x, length in (("h", side.h, size), ("m", side.m, cell.memory_size(size))):
            if tuple(x.shape) != (*leading, length):
                raise UserError(
                    f"side {n}: expected {name} of shape {(*leading, length)} "
                    f"(extents of the other dimensions, batch, size), got {tuple(x.shape)}."
                )
            if x.dtype != reference.dtype or x.device != reference.device:
                raise UserError(
                    f"side {n}: expected {name} as {reference.dtype} on {reference.device} like side 0, "
                    f"got {x.dtype} on {x.device}."
                )


def check_weights(name: str, weights: Weights, like: Tensor) -> None:
    """Raise UserError unless a transform's weight and bias are on the device and of the type of ``like``, or of one
    that autocast makes the same: copying them into buffers would convert them without a word.
    """
    check_factor(f"the weight of {name}", weights.weight, like)
    if weights.bias is not None:
        check_factor(f"the bias of {name}", weights.bias, like)


def check_masks(block: Block, masks: Sequence[Masks], extents: Sequence[int], like: Tensor) -> None:
    """Raises UserError unless there is one for each dimension and each fits the grid.

    Args:
        like: any tensor that enters the grid, (..., B, size).
    """
    if len(masks) != len(block.cells):
        raise UserError(f"expected {len(block.cells)} masks, one a dimension, got {len(masks)}.")
    for n, (mask, size, cell) in enumerate(zip(masks, block.sizes, block.cells, strict=True)):
        for name, x, length in zip(mask._fields, mask, (size, cell.memory_size(size), size), strict=True):
            if x is None:
                continue
            if x.dtype != torch.bool and not x.is_floating_point():
                raise UserError(
                    f"masks of dimension {n}: expected {name} of booleans or floats, got {x.dtype}: convert it by "
                    f".bool() or .float()."
                )
            shape = (*extents, like.shape[-2], length)
            fits = x.dim() <= len(shape) and all(a in (1, b) for a, b in zip(x.shape[::-1], shape[::-1], strict=False))
            if not fits or x.device != like.device:
                raise UserError(
                    f"masks of dimension {n}: expected {name} of shape {shape} (extents, batch, size), or one that "
                    f"broadcasts to it, on {like.device}, got {tuple(x.shape)} on {x.device}."
                )
            if x.requires_grad:
                raise UserError(f"masks of dimension {n}: {name} gets no gradient: pass {name}.detach().")
