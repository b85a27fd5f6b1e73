"""The fast sweep: all blocks of a diagonal at once, and the weight gradient as one product after the sweep.

It equals ``gridlstm.scan.scan`` in value and in every gradient; only the order of sums differs. Three things make it
fast. The blocks of a diagonal form one matrix product per stage, for all dimensions of the stage together. A block
writes what leaves it where its successor reads it, so nothing is gathered or concatenated between products. Gradients
of the pre-activations are kept, and the weight gradient is formed from all of them at once, outside the chain of
dependent steps.

Shape legend: as in ``gridlstm.buffers``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gridlstm.buffers import Buffers, Layout, empty
from gridlstm.cell import HiddenMemory
from gridlstm.errors import UserError
from gridlstm.fused import FusedStep, can_fuse
from gridlstm.matmul import fastest_product
from gridlstm.plan import Diagonal
from gridlstm.scan import Block, Weights
from gridlstm.steps import EagerStep, Step


def wavefront(
    block: Block, weights: Sequence[Weights], sides: Sequence[HiddenMemory], extents: Sequence[int]
) -> list[HiddenMemory]:
    """``scan`` by diagonals: same arguments, same results, same gradients.

    For each block and batch row it keeps the hidden and memory vectors and the gates: 6 D numbers for LSTM cells.

    Raises:
        UserError: when a second derivative is asked for (``create_graph=True``).
    """
    return _apply(True, block, weights, sides, extents)


def recomputing_wavefront(
    block: Block, weights: Sequence[Weights], sides: Sequence[HiddenMemory], extents: Sequence[int]
) -> list[HiddenMemory]:
    """``wavefront`` that keeps no gates, 2 D numbers instead of 6 D for LSTM cells: the backward pass computes them
    again, bit for bit, which costs a forward sweep."""
    return _apply(False, block, weights, sides, extents)


def _apply(
    keep: bool, block: Block, weights: Sequence[Weights], sides: Sequence[HiddenMemory], extents: Sequence[int]
) -> list[HiddenMemory]:
    N = len(extents)
    flat = _Wavefront.apply(
        keep,
        block,
        tuple(extents),
        *(w.weight for w in weights),
        *(w.bias for w in weights),
        *(side.h for side in sides),
        *(side.m for side in sides),
    )
    return [HiddenMemory(flat[n], flat[N + n]) for n in range(N)]


def _steps(buffers: Buffers, backward: bool = False) -> list[Step]:
    cells, X = buffers.layout.block.cells, buffers.X
    return [
        FusedStep(n, buffers, backward) if can_fuse(cell, X[0], len(X)) else EagerStep(n, buffers)
        for n, cell in enumerate(cells)
    ]


def _product(
    diagonal: Diagonal, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool = False
) -> None:
    """out (r, B, j) = x (r, B, i) times each block's copy of weight (copies, i, j), plus its bias or what is there."""
    copies = diagonal.batched_copies
    if len(diagonal.copies) == 1 or copies is None:
        start = 0
        for copy, count in diagonal.copies:
            rows = slice(start, start + count)
            _mm(x[rows].flatten(0, 1), weight[copy], None if bias is None else bias[copy], out[rows].flatten(0, 1), add)
            start += count
        return
    n = copies.stop - copies.start
    x, out = x.view(n, -1, x.shape[-1]), out.view(n, -1, out.shape[-1])
    if add:
        out.baddbmm_(x, weight[copies])
    elif bias is None:
        torch.bmm(x, weight[copies], out=out)
    else:
        torch.baddbmm(bias[copies, None], x, weight[copies], out=out)


def _mm(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, add: bool) -> None:
    if add:
        out.addmm_(x, weight)
    elif bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)


def _fill(buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None], again: bool = False) -> None:
    """The forward sweep: Z and all slots from what enters the grid; ``again`` fills Z alone, from complete slots."""
    layout, steps = buffers.layout, _steps(buffers)
    packed, bias = layout.pack_weights_transposed(weights), layout.pack_biases(biases, buffers.X[0])
    with fastest_product(buffers.X[0]):
        for diagonal in layout.plan.diagonals:
            for k, stage in enumerate(layout.block.stages):
                x, z = buffers.X[k][diagonal.rows], buffers.Z[k][diagonal.rows]
                _product(diagonal, x, packed[k], bias[k], out=z)
                for n in stage:
                    if again:
                        steps[n].restore(diagonal)
                    else:
                        steps[n].forward(diagonal)


class _Wavefront(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: bool, block: Block, extents: tuple[int, ...], *tensors: Any) -> tuple[Tensor, ...]:
        N = len(extents)
        weights, biases, side_h, side_m = (tensors[i * N : (i + 1) * N] for i in range(4))
        like, B = side_h[0], side_h[0].shape[-2]
        layout = Layout(block, extents, B, like.device)
        rows, C = layout.plan.rows, layout.plan.blocks
        X = [empty(rows, B, layout.D, like=like) for _ in block.stages]
        M = [empty(rows, B, m.shape[-1], like=like) for m in side_m]
        Z = [empty(C, B, G, like=like) for G in layout.num_gates]
        for n, columns in enumerate(layout.columns):
            entries = layout.plan.entries[n]
            for k in range(layout.stage_of[n] + 1):
                X[k][:, :, columns].index_copy_(0, entries, side_h[n].reshape(-1, B, block.sizes[n]))
            M[n].index_copy_(0, entries, side_m[n].reshape(-1, B, M[n].shape[-1]))

        _fill(Buffers(layout, X, M, Z), weights, biases)

        ctx.layout, ctx.Z = layout, Z if keep else None
        ctx.shapes = [h.shape for h in side_h], [m.shape for m in side_m]
        ctx.save_for_backward(*weights, *biases, *X, *M)
        leaving = [slice(C, C + exits) for exits in layout.plan.exits]
        return (
            *(X[0][leaving[n], :, layout.columns[n]].reshape(side_h[n].shape).clone() for n in range(N)),
            *(M[n][leaving[n]].reshape(side_m[n].shape).clone() for n in range(N)),
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise UserError(
                "the wavefront sweep has no second derivatives: choose sweep=reference to differentiate twice."
            )
        layout: Layout = ctx.layout
        block, B, C = layout.block, layout.B, layout.plan.blocks
        N, K = len(block.cells), len(block.stages)
        saved = ctx.saved_tensors
        weights, biases, X, M = saved[:N], saved[N : 2 * N], saved[2 * N : 2 * N + K], saved[2 * N + K :]
        # The first backward pass turns the kept gates into their gradients; a second one through the same graph
        # (retain_graph) computes them again.
        kept, ctx.Z = ctx.Z, None
        buffers = Buffers(layout, X, M, kept or [empty(C, B, G, like=X[0]) for G in layout.num_gates])
        if kept is None:
            _fill(buffers, weights, biases, again=True)
        dH = buffers.dH = empty(*X[0].shape, like=X[0])
        dM = buffers.dM = [empty(*m.shape, like=m) for m in M]
        for n, columns in enumerate(layout.columns):
            leaving = slice(C, C + layout.plan.exits[n])
            dH[leaving, :, columns] = grads[n].reshape(-1, B, block.sizes[n])
            dM[n][leaving] = grads[N + n].reshape(-1, B, M[n].shape[-1])

        learned = [
            bias if needed else None for bias, needed in zip(biases, ctx.needs_input_grad[3 + N :], strict=False)
        ]
        with fastest_product(dH):
            _sweep_back(buffers, weights)
            gradients = _weight_gradients(buffers, weights, learned)
        entries = layout.plan.entries
        grad_h = [dH[:, :, layout.columns[n]].index_select(0, entries[n]).view(ctx.shapes[0][n]) for n in range(N)]
        grad_m = [dM[n].index_select(0, entries[n]).view(ctx.shapes[1][n]) for n in range(N)]
        return None, None, None, *gradients, *grad_h, *grad_m


def _sweep_back(buffers: Buffers, weights: Sequence[Tensor]) -> None:
    """From the gradients of what leaves the grid, those of all pre-activations (into Z) and of all slots."""
    layout, dH = buffers.layout, buffers.dH
    stages, last = layout.block.stages, len(layout.block.stages) - 1
    packed, steps = layout.pack_weights(weights), _steps(buffers, backward=True)
    for diagonal in reversed(layout.plan.diagonals):
        here = dH[diagonal.rows]
        for k in range(last, -1, -1):
            # The columns of dimension n collect the gradient of the block's own h'_n until its stage, and after it
            # that of the incoming h_n.
            later = here if k < last else None
            direct = [(layout.columns[n], steps[n].backward(diagonal, later)) for n in stages[k]]
            if later is not None:
                for columns, _ in direct:
                    here[:, :, columns] = 0
            _product(diagonal, buffers.Z[k][diagonal.rows], packed[k], None, out=here, add=later is not None)
            for columns, gradient in direct:
                if gradient is not None:
                    here[:, :, columns] += gradient


def _weight_gradients(
    buffers: Buffers, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """dW = sum over all blocks and rows of dz H^T, one product for each weight copy; db = sum of dz.

    Args:
        biases: the learned ones, None for a constant.
    """
    layout = buffers.layout
    N, C, by_copy = len(weights), layout.plan.blocks, layout.plan.by_copy
    gradients: list[Tensor | None] = [None] * (2 * N)
    for k, stage in enumerate(layout.block.stages):
        dz, x = buffers.Z[k], buffers.X[k][:C]
        grad_weight = empty(len(by_copy), dz.shape[-1], layout.D, like=dz)  # (copies, G, D)
        grad_bias = empty(len(by_copy), dz.shape[-1], like=dz)  # (copies, G)
        has_bias = any(biases[n] is not None for n in stage)
        for copy, rows in enumerate(by_copy):
            a, b = (dz, x) if len(by_copy) == 1 else (dz.index_select(0, rows), x.index_select(0, rows))
            torch.mm(a.flatten(0, 1).t(), b.flatten(0, 1), out=grad_weight[copy])
            if has_bias:
                torch.sum(a, (0, 1), out=grad_bias[copy])
        for n in stage:
            gradients[n] = grad_weight[:, layout.gates[n]].reshape(weights[n].shape)
            if (bias := biases[n]) is not None:
                gradients[N + n] = grad_bias[:, layout.gates[n]].reshape(bias.shape)
    return gradients
