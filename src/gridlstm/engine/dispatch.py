"""Choice of the sweep. All sweeps give the same values and gradients; they differ only in speed."""

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
from gridlstm.engine.fused import can_fuse, chain_fits
from gridlstm.engine.graphs import Recorded, records
from gridlstm.engine.half_step import half_step, half_step_fits
from gridlstm.engine.layer_major import layer_major, layer_major_fits
from gridlstm.engine.operands import autocast_type, check_factor
from gridlstm.engine.packed import Packed
from gridlstm.engine.wavefront import FEW_ROWS, recomputing_wavefront, wavefront
from gridlstm.errors import UserError
from gridlstm.scan import Block, Masks, Weights, scan

log = logging.getLogger(__name__)

Sweep = Callable[
    [Block, Sequence[Weights], Sequence[HiddenMemory], Sequence[int], Sequence[Masks] | None], list[HiddenMemory]
]
SweepName = Literal["auto", "reference", "wavefront", "recompute", "layer-major", "half-step"]
ChainName = Literal["auto", "reference"]


def check_sweep_name(name: str, names: Any = SweepName) -> None:
    """Raise UserError unless ``name`` is one of ``names``, ``SweepName`` or ``ChainName``."""
    if name not in get_args(names):
        raise UserError(f"sweep must be one of {', '.join(get_args(names))}, got {name!r}.")


def check_sweep_fits(name: SweepName, block: Block) -> None:
    """Check that a sweep supports the block.

    Raises:
        UserError: if the sweep is "layer-major" or "half-step" and the block needs another order.
    """
    if name == "half-step" and not half_step_fits(block):
        raise UserError(
            "sweep=half-step needs two stages with equally many gates, which priority creates, and tied weights. "
            "Use sweep=auto, set priority or tie the weights."
        )
    if name == "layer-major" and not layer_major_fits(block):
        raise UserError(
            "sweep=layer-major needs at least two dimensions, the last of them computed in the last stage, and weights "
            "untied along no other. Use sweep=auto, change priority or tie the weights."
        )


def sweep_named(
    name: SweepName, block: Block, extents: Sequence[int], like: Tensor, masks: Sequence[Masks] | None = None
) -> Sweep:
    """Return the named sweep, or for "auto" the fastest known one for this grid on this device.

    If plain operations are needed, return the reference.

    Args:
        like: any input tensor of the grid, (..., B, size).

    Raises:
        UserError: see ``check_sweep_fits``.
    """
    # Checked again, because the name may have changed since the grid was built.
    if name != "auto" and name not in SWEEPS:
        check_sweep_name(name)
    check_sweep_fits(name, block)
    check_fixed(extents)
    if needs_plain_ops(like):
        return scan
    if name == "auto":
        name = "layer-major" if _prefers_layers(block, extents, like, masks) else "wavefront"
        if not torch.compiler.is_compiling():  # logging would break the compiled graph in two
            _log_once(f"sweep: {name} (auto)")
    sweep = SWEEPS[name]
    return Recorded(sweep) if isinstance(sweep, Packed) and records(like) else sweep


def chain_named(name: ChainName, cell: Cell, x: Tensor) -> Callable[[Any, Weights, Tensor, HiddenMemory], Chained]:
    """Return the function that computes a layer of a stacked network: for "auto" the fast loop if it is faster.

    Args:
        x: input of the layer, (T, B, e).

    Raises:
        UserError: see ``check_fixed``.
    """
    check_fixed(x.shape[:1])
    fast = (type(cell) is LSTM or can_fuse(cell, x)) and len(x) >= CHAIN_STEPS and not needs_plain_ops(x)
    return chain if name == "auto" and fast else reference_chain


def check_fixed(extents: Sequence[int]) -> None:
    """Raise UserError if extents are symbolic, as in a traced program, instead of fixed numbers."""
    if any(type(extent) is not int for extent in extents):
        raise UserError(
            f"a traced program unrolls all blocks and steps. Expected fixed numbers of them, got {tuple(extents)}. Use "
            f"torch.export.export with a fixed number of steps; its batch may be dynamic."
        )


def needs_plain_ops(like: Tensor) -> bool:
    """Return True if only plain operations work: in torch.export, torch.func, tracers and forward-mode derivatives, and
    for tensors without memory.
    """
    if torch.compiler.is_exporting():
        return True
    if torch.compiler.is_dynamo_compiling():  # the fast sweeps run uncompiled
        return False
    modes = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
    return (
        bool(torch._C._are_functorch_transforms_active())
        or like.device.type == "meta"
        or type(like) not in (Tensor, Parameter)  # such as FakeTensor
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)
        or torch._C._get_tracing_state() is not None  # torch.jit.trace
        or torch.autograd.forward_ad._current_level >= 0  # hand-written gradients have no forward mode
    )


def _prefers_layers(block: Block, extents: Sequence[int], like: Tensor, masks: Sequence[Masks] | None) -> bool:
    """Return True if "layer-major" is expected to be faster than "wavefront".

    With untied weights, a diagonal has separate products of B rows, and a layer one product of all its rows. But one
    layer takes as many sequential steps as a whole grid of diagonals, so it is faster only if a step's arithmetic
    outweighs the overhead of starting it, or if all steps of a layer are one call, and layers are no more than steps
    (one thread of a Zen 5, 2x64 T50 B15: layers 1.8 times as fast; 20x32 T8 B1: diagonals 1.2 times). Measured only on
    CPUs.
    """
    if not block.untied or not layer_major_fits(block) or like.device.type != "cpu":
        return False
    width, (*outer, _) = sum(block.sizes[:-1]), extents
    if prod(outer) == 1 and like.shape[-2] < FEW_ROWS:
        return False  # the wavefront copies no weights then, and a layer has no chain
    blocks_at_once = prod(outer) / (sum(outer) - len(outer) + 1)  # in a diagonal of average length
    flops = 2 * like.shape[-2] * blocks_at_once * width * 4 * width
    product_dtype = autocast_type(like)
    masked = masks is not None and (masks[0].keep_h is not None or masks[0].drop is not None)
    if product_dtype is not None:  # then a chain in one call cannot have dropout in other dimensions either
        masked = masked or (masks is not None and any(mask.drop is not None for mask in masks))
    # torch.compile cannot trace the search for a compiler.
    if not torch.compiler.is_dynamo_compiling() and chain_fits(block, like, product_dtype, masked):
        return flops > STEP_FLOPS or outer[0] >= extents[-1]
    return flops > (STEP_FLOPS if product_dtype is None else LOW_STEP_FLOPS)


# Arithmetic that takes as long as starting an operation, 10 microseconds, at a CPU's 100 GF/s (untied, steps started
# one by one, 10x32 T20 B1: diagonals 2.6 times as fast; 20x64 T12 B15: equal; 43x100 T42 B15: layers 1.3 times).
STEP_FLOPS = 1e6
# The same in a shorter type, on an Intel Xeon with AMX (T42 B15, bfloat16, untied: 43x100 diagonals 1.8 times as fast;
# 20x150: equal; 20x280: layers 1.6 times).
LOW_STEP_FLOPS = 2.7e6

# With fewer steps, the set-up of a layer dominates: 15 rows of 45 units take 520 microseconds instead of 430 at 2
# steps, 600 instead of 660 at 4. Cells that use autograd are as fast or up to 3 times faster in the plain loop.
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
    """Return plain tuples as HiddenMemory. Raise UserError unless every side is a pair of tensors."""
    for n, side in enumerate(sides):
        if not isinstance(side, tuple | list) or [isinstance(x, Tensor) for x in side] != [True, True]:
            got = [type(x).__name__ for x in side] if isinstance(side, tuple | list) else type(side).__name__
            raise UserError(f"side {n}: expected HiddenMemory(h, m), or another pair of tensors, got {got}.")
    return [HiddenMemory(*side) for side in sides]


def check_sides(block: Block, sides: Sequence[HiddenMemory], extents: Sequence[int]) -> None:
    """Raise UserError unless the sides fit the grid."""
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
    """Raise UserError unless a transform's weight and bias have the device and type of ``like``, up to autocast.

    Copying them into buffers would convert them silently.
    """
    check_factor(f"the weight of {name}", weights.weight, like)
    if weights.bias is not None:
        check_factor(f"the bias of {name}", weights.bias, like)


def check_masks(block: Block, masks: Sequence[Masks], extents: Sequence[int], like: Tensor) -> None:
    """Raise UserError unless each dimension has one mask that fits the grid.

    Args:
        like: any input tensor of the grid, (..., B, size).
    """
    if len(masks) != len(block.cells):
        raise UserError(f"expected {len(block.cells)} masks, one per dimension, got {len(masks)}.")
    for n, (mask, size, cell) in enumerate(zip(masks, block.sizes, block.cells, strict=True)):
        if not isinstance(mask, Masks):
            raise UserError(f"masks of dimension {n}: expected gridlstm.scan.Masks, got {type(mask).__name__}.")
        if (scale := mask.scale) is not None:
            if not isinstance(scale, Tensor) or scale.dim() > 0:
                got = f"a tensor of shape {tuple(scale.shape)}" if isinstance(scale, Tensor) else repr(scale)
                raise UserError(
                    f"masks of dimension {n}: expected scale as a tensor with one number, of shape (), got {got}."
                )
            if mask.drop is None:
                raise UserError(f"masks of dimension {n}: scale multiplies drop, and there is no drop.")
        for name, x, length in zip(mask._fields, mask, (size, cell.memory_size(size), size, 1), strict=True):
            if x is None:
                continue
            if not isinstance(x, Tensor):
                raise UserError(f"masks of dimension {n}: expected {name} as a tensor, got {type(x).__name__}.")
            if x.dtype != torch.bool and not x.is_floating_point():
                raise UserError(
                    f"masks of dimension {n}: expected {name} of booleans or floats, got {x.dtype}. Convert it with "
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
                raise UserError(f"masks of dimension {n}: {name} cannot get a gradient. Pass {name}.detach().")
