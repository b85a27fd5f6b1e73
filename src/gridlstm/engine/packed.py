"""The fast sweeps as one differentiable function: buffers, weight gradients and tensors saved between the passes.

It equals ``gridlstm.scan.scan`` in value and in every gradient; only the order of sums differs. Three things make it
fast. Independent blocks form one matrix product per stage, for all dimensions of the stage together. A block writes its
outputs where its successors read them, so nothing is gathered or concatenated between products. Gradients of the
pre-activations are kept, and the weight gradient is computed from all of them at once, outside the chain of dependent
steps.

Shape legend: as in ``gridlstm.engine.buffers``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gridlstm.cell import HiddenMemory
from gridlstm.engine.bfloat16 import is_low
from gridlstm.engine.buffers import Buffers, Layout, RowMasks, empty_stages, stages_of
from gridlstm.engine.dropout import Factors
from gridlstm.engine.fused import adds_bias, fused_step, joint_fits, joint_steps, pointwise_step
from gridlstm.engine.matmul import affine, fastest_product, multiply_transposed
from gridlstm.engine.memory import empty
from gridlstm.engine.operands import autocast_type
from gridlstm.engine.passes import as_it_is, backward_pass, save, saved
from gridlstm.engine.plan import Order
from gridlstm.engine.steps import EagerStep, Owner, Reader, Step
from gridlstm.engine.triton_step import triton_step
from gridlstm.scan import Block, Masks, Weights


class Schedule(Protocol):
    """The order in which a sweep computes blocks."""

    order: Order

    def forward(self, buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Fill Z and all slots, given the inputs of the grid."""

    def backward(self, buffers: Buffers, weights: Sequence[Tensor]) -> None:
        """Compute gradients of all pre-activations (into Z) and slots, given the gradients of the grid's outputs."""


@dataclass(frozen=True)
class Packed:
    """A fast sweep; call it like ``gridlstm.scan.scan``.

    For each block and batch row it saves the hidden and memory vectors and the gates: 6 D numbers for LSTM cells, fewer
    where dimensions have the same gates.

    Args:
        schedule: the order of computation.
        recompute: do not save gates, 2 D numbers instead of 6 D for LSTM cells; the backward pass computes them again
            in one product over all blocks, equal up to rounding.

    Under autocast, matrix products run in its type; states, weights and their gradients keep their types.
    """

    schedule: Schedule
    recompute: bool = False

    @as_it_is
    def __call__(
        self,
        block: Block,
        weights: Sequence[Weights],
        sides: Sequence[HiddenMemory],
        extents: Sequence[int],
        masks: Sequence[Masks] | None = None,
    ) -> list[HiddenMemory]:
        """Return the outputs of the grid, differentiable with respect to weights and sides.

        Raises:
            UserError: if a second derivative is requested (``create_graph=True``).
        """
        N, device, product_dtype = len(extents), sides[0].h.device.type, autocast_type(sides[0].h)
        keep_gates = torch.is_grad_enabled() and not self.recompute
        with torch.autocast(device, enabled=False):
            flat = _PackedSweep.apply(
                self.schedule,
                keep_gates,
                block,
                tuple(extents),
                masks,
                product_dtype,
                *(w.weight for w in weights),
                *(w.bias for w in weights),
                *(side.h for side in sides),
                *(side.m for side in sides),
                *(vector for w in weights for vector in w.vectors),
            )
        return [HiddenMemory(flat[n], flat[N + n]) for n in range(N)]


def split_biases(buffers: Buffers, biases: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Leave to the steps the biases that they can add, and return those that products must add.

    A dimension that reads another's product also reads its bias, so either the steps of both add it or the product.
    """
    layout = buffers.layout
    able = [buffers.is_low or adds_bias(n, buffers) for n in range(len(biases))]
    for reader, owner in layout.same.items():
        able[owner] = able[owner] and able[reader]
    by_steps = [able[layout.same.get(n, n)] for n in range(len(biases))]
    buffers.added_biases = [
        bias.reshape(-1, bias.shape[-1]).to(buffers.X[0].dtype).contiguous() if bias is not None and by_step else None
        for bias, by_step in zip(biases, by_steps, strict=True)
    ]
    return [None if by_step else bias for bias, by_step in zip(biases, by_steps, strict=True)]


def _zero_bias_gradients(buffers: Buffers, learned: Sequence[bool]) -> None:
    """Let the steps of the backward pass add up the gradients of learned biases, where they can.

    A dimension whose pre-activations others read gets their gradients too: from a joint step at once, otherwise after
    its step, so that it cannot add them up.
    """
    layout = buffers.layout
    for n, need in enumerate(learned):
        if need and n not in layout.same and (layout.joint or not layout.same) and adds_bias(n, buffers):
            gates = layout.gates[n].stop - layout.gates[n].start
            shape = torch.get_num_threads(), len(layout.plan.by_copy), gates
            buffers.grad_biases[n] = buffers.X[0].new_zeros(shape, dtype=torch.float64)


def steps(buffers: Buffers, backward: bool = False) -> list[Step]:
    """Return each dimension's pointwise step. The steps of one stage run in the order of ``Layout.stages``."""
    layout = buffers.layout
    joint = joint_steps(buffers, backward) if layout.joint else {}

    def step(n: int) -> Step:
        if n in joint:
            return joint[n]
        on_gpu = triton_step(n, buffers, backward) if pointwise_step() == "triton" else None
        own = on_gpu or fused_step(n, buffers, backward) or EagerStep(n, buffers)
        readers = [reader for reader, owner in layout.same.items() if owner == n]
        if n in layout.same:
            return Reader(n, buffers, own)
        return Owner(n, readers, buffers, own) if readers else own

    return [step(n) for n in range(len(layout.block.cells))]


def _by_dimension(block: Block, vectors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Split the flat list of all cells' vectors by dimension."""
    rest, result = list(vectors), []
    for cell, size in zip(block.cells, block.sizes, strict=True):
        count = len(cell.vector_lengths(size))
        result.append(tuple(rest[:count]))
        rest = rest[count:]
    return result


class _PackedSweep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        schedule: Schedule,
        keep_gates: bool,
        block: Block,
        extents: tuple[int, ...],
        masks: Sequence[Masks] | None,
        product_dtype: torch.dtype | None,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        N = len(extents)
        weights, biases, side_h, side_m = (tensors[i * N : (i + 1) * N] for i in range(4))
        vectors = tensors[4 * N :]
        like, B = side_h[0], side_h[0].shape[-2]
        joint = joint_fits(block, like.detach())  # a parameter has another type
        layout = Layout(block, extents, B, like.device, schedule.order, product_dtype, joint)
        rows, C = layout.plan.rows, layout.plan.blocks
        X = empty_stages([layout.D] * len(block.stages), rows, B, like)
        M = [empty(rows, B, m.shape[-1], like=like) for m in side_m]
        kept_rows = C if keep_gates else layout.at_once
        _enter(layout, side_h, X)
        for n, entries in enumerate(layout.plan.entries):
            M[n].index_copy_(0, entries, side_m[n].reshape(len(entries), B, M[n].shape[-1]))
        with fastest_product(like, layout.largest_product):
            by_row = None if masks is None else RowMasks.of(masks, layout, like)
            buffers = Buffers(layout, X, M, [], _by_dimension(block, vectors), by_row)
            buffers.is_low = is_low(buffers, schedule.order)
            if buffers.is_low:
                buffers.low_X = empty_stages([layout.D] * len(X), rows, B, _empty_gates(buffers))
                if buffers.factors is None:
                    _enter(layout, side_h, buffers.low_X)
            gates = empty(kept_rows * B * sum(layout.num_gates), like=_empty_gates(buffers))
            buffers.Z = stages_of(gates, layout.num_gates, kept_rows, B)
            schedule.forward(buffers, weights, split_biases(buffers, biases))

        ctx.schedule, ctx.layout, ctx.has_gates, ctx.is_low = schedule, layout, keep_gates, buffers.is_low
        ctx.shapes = [h.shape for h in side_h], [m.shape for m in side_m]
        drop, scale, ctx.span = buffers.factors or (None, None, None)
        ordered = [drop, scale, *(x for keep in buffers.keep for x in keep)]
        low = buffers.low_X or []
        save(ctx, *weights, *biases, *vectors, *X, *M, *ordered, *low, gates if keep_gates else None)
        leaving = [slice(C, C + exits) for exits in layout.plan.exits]
        return (
            *(X[0][leaving[n], :, layout.columns[n]].reshape(side_h[n].shape).clone() for n in range(N)),
            *(M[n][leaving[n]].reshape(side_m[n].shape).clone() for n in range(N)),
        )

    @staticmethod
    @backward_pass("the fast sweeps have")
    def backward(ctx: Any, *grads: Tensor) -> Any:
        layout: Layout = ctx.layout
        block, B, C = layout.block, layout.B, layout.plan.blocks
        N, K = len(block.cells), len(block.stages)
        *kept, gates = saved(ctx)
        low = kept[-K:] if ctx.is_low else []
        kept = kept[:-K] if ctx.is_low else kept
        drop, scale, *keep = kept[-2 - 2 * N :]
        factors = None if drop is None else Factors(drop, scale, ctx.span)
        masks = RowMasks(factors, list(zip(keep[::2], keep[1::2], strict=True)))
        kept = kept[: -2 - 2 * N]
        weights, biases, vectors = kept[:N], kept[N : 2 * N], kept[2 * N : -N - K]
        X, M = ([x.contiguous() for x in kind] for kind in (kept[-N - K : -N], kept[-N:]))
        # The first backward pass overwrites the kept gates with their gradients. A second one through the same graph
        # (retain_graph) computes the gates again, with other products and other rounding. In double precision,
        # gradient checks need the same result each time, so a copy is overwritten instead.
        has_gates, exact = ctx.has_gates, X[0].dtype == torch.float64
        ctx.has_gates = has_gates and exact
        buffers = Buffers(layout, X, M, [], _by_dimension(block, vectors), masks)
        buffers.is_low = ctx.is_low
        if has_gates:
            # .data has its own version counter: otherwise the second pass would fail on a modified saved tensor.
            own = gates.clone() if exact else gates.data.contiguous()
            buffers.Z = stages_of(own, layout.num_gates, C, B)
        else:
            buffers.Z = empty_stages(layout.num_gates, C, B, _empty_gates(buffers))
        if ctx.is_low:
            buffers.low_X = [x.contiguous() for x in low]
            split_biases(buffers, biases)
        dH = buffers.dH = empty(*X[0].shape, like=X[0])
        dM = buffers.dM = [empty(*m.shape, like=m) for m in M]
        buffers.zero_vector_gradients()
        for n, columns in enumerate(layout.columns):
            leaving = slice(C, C + layout.plan.exits[n])
            dH[leaving, :, columns] = grads[n].reshape(layout.plan.exits[n], B, block.sizes[n])
            dM[n][leaving] = grads[N + n].reshape(layout.plan.exits[n], B, M[n].shape[-1])
        trained, learned = (ctx.needs_input_grad[6 + i * N : 6 + (i + 1) * N] for i in range(2))
        _zero_bias_gradients(buffers, learned)
        with fastest_product(dH, layout.largest_product):
            if not has_gates:
                _restore_gates(buffers, weights, biases)
            ctx.schedule.backward(buffers, weights)
            gradients = _weight_gradients(
                buffers, weights, trained, [b if need else None for b, need in zip(biases, learned, strict=True)]
            )
        entries = layout.plan.entries
        grad_h = [dH[:, :, layout.columns[n]].index_select(0, entries[n]).view(ctx.shapes[0][n]) for n in range(N)]
        grad_m = [dM[n].index_select(0, entries[n]).view(ctx.shapes[1][n]) for n in range(N)]
        return None, None, None, None, None, None, *gradients, *grad_h, *grad_m, *buffers.vector_gradients(vectors)


def _enter(layout: Layout, sides: Sequence[Tensor], X: Sequence[Tensor]) -> None:
    """Write the h that enter the grid, (*extents of other dimensions, B, d_n), into the slots of the stages' inputs."""
    for n, columns in enumerate(layout.columns):
        entries = layout.plan.entries[n]
        entering = sides[n].reshape(len(entries), layout.B, layout.block.sizes[n]).to(X[0].dtype)
        for k in range(layout.stage_of[n] + 1):
            X[k][:, :, columns].index_copy_(0, entries, entering)


def _empty_gates(buffers: Buffers) -> Tensor:
    """Return an empty tensor like the gates of a sweep."""
    return buffers.X[0].new_empty(0, dtype=torch.bfloat16 if buffers.is_low else None)


def _rows(buffer: Tensor, rows: slice | Tensor) -> Tensor:
    """Return a view of contiguous rows, or a copy of other rows."""
    return buffer[rows] if isinstance(rows, slice) else buffer.index_select(0, rows)


def _restore_gates(buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    """Fill Z as the forward pass did. With all slots filled, blocks are independent: one product per weight copy."""
    layout = buffers.layout
    by_products = [None] * len(biases) if buffers.is_low else biases
    packed, bias = layout.pack_weights(weights), layout.pack_biases(by_products, buffers.X[0])
    everything = slice(0, layout.plan.blocks)
    for k in range(len(buffers.Z)):
        x, Z = buffers.operand(k, everything), buffers.product(k, everything)
        for copy, rows in enumerate(layout.plan.by_copy):
            constant = None if (own := bias[k]) is None else own[copy]
            z = _rows(Z, rows)
            affine(_rows(x, rows).flatten(0, 1), packed[k][copy].t(), constant, z.flatten(0, 1), layout.product_dtype)
            if isinstance(rows, Tensor):
                Z.index_copy_(0, rows, z)
    if buffers.is_low:
        for reader, owner in () if layout.joint else layout.same.items():
            Z = buffers.Z[layout.stage_of[reader]]
            Z[:, :, layout.gates[reader]] = Z[:, :, layout.gates[owner]]
        return
    pointwise = steps(buffers)
    for stage in layout.stages:
        for n in stage:
            pointwise[n].restore(everything)


def _weight_gradients(
    buffers: Buffers, weights: Sequence[Tensor], trained: Sequence[bool], biases: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return dW = sum over all blocks and rows of dz H^T, one product for each weight copy, and db = sum of dz.

    Args:
        trained: for each dimension, false if its weight is frozen.
        biases: the learned biases, None for a constant.
    """
    layout = buffers.layout
    N, C, by_copy = len(weights), layout.plan.blocks, layout.plan.by_copy
    gradients: list[Tensor | None] = [None] * (2 * N)
    for k, owners in enumerate(layout.owners):
        dz, x = buffers.product(k, slice(0, C)), buffers.operand(k, slice(0, C))
        # One product for all dimensions if their gradients, rows of it, are contiguous and become ``.grad`` without a
        # copy. Otherwise one for each dimension.
        together = len(by_copy) == 1 and all(trained[n] for n in owners)
        whole = empty(1, layout.products[k], layout.D, like=buffers.dH) if together else None
        for n in owners:
            if whole is not None:
                gradients[n] = whole[:, layout.gates[n]]
            elif trained[n]:
                gradients[n] = empty(len(by_copy), weights[n].shape[-2], layout.D, like=buffers.dH)
            if biases[n] is not None:
                gradients[N + n] = empty(len(by_copy), weights[n].shape[-2], like=buffers.dH)
        for copy, rows in enumerate(by_copy):
            z, H = _rows(dz, rows).flatten(0, 1), _rows(x, rows).flatten(0, 1)
            if whole is not None:
                multiply_transposed(z, H, whole[copy], layout.product_dtype)
            for n in owners:
                own = z[:, layout.gates[n]]
                if whole is None and (gradient := gradients[n]) is not None:
                    multiply_transposed(own, H, gradient[copy], layout.product_dtype)
                if (gradient := gradients[N + n]) is not None:
                    if (total := buffers.grad_biases[n]) is None:
                        torch.sum(own, 0, out=gradient[copy])
                    else:
                        gradient[copy] = total[:, copy].sum(0)
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if (gradient := gradients[n]) is not None:
            gradients[n] = gradient.view(weight.shape)
        if bias is not None and (gradient := gradients[N + n]) is not None:
            gradients[N + n] = gradient.view(bias.shape)
    return gradients
