"""The fast sweep: all blocks of a diagonal at once, and the weight gradient as one product after the sweep.

It equals ``gridlstm.scan.scan`` in value and in every gradient; only the order of sums differs. Three things make it
fast. The blocks of a diagonal form one matrix product per stage, for all dimensions of the stage together. A block
writes what leaves it where its successor reads it, so nothing is gathered or concatenated between products. Gradients
of the pre-activations are kept, and the weight gradient is formed from all of them at once, outside the chain of
dependent steps.

Shape legend: N dimensions, B batch rows, d_n size of dimension n, D = d_1 + ... + d_N, C blocks of the grid, r blocks
of one diagonal, G packed gates of all dimensions of one stage. Buffers are (rows, B, ...), a row as in ``plan.Plan``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gridlstm.cell import HiddenMemory
from gridlstm.errors import UserError
from gridlstm.plan import Diagonal, Plan, Runs, plan
from gridlstm.pointwise import pointwise
from gridlstm.scan import Block, Weights


def wavefront(
    block: Block, weights: Sequence[Weights], sides: Sequence[HiddenMemory], extents: Sequence[int]
) -> list[HiddenMemory]:
    """``scan`` by diagonals: same arguments, same results, same gradients.

    Raises:
        UserError: when a second derivative is asked for (``create_graph=True``).
    """
    N = len(extents)
    flat = _Wavefront.apply(
        block,
        tuple(extents),
        *(w.weight for w in weights),
        *(w.bias for w in weights),
        *(side.h for side in sides),
        *(side.m for side in sides),
    )
    return [HiddenMemory(flat[n], flat[N + n]) for n in range(N)]


class _Layout:
    """Where each dimension stands in the packed buffers."""

    def __init__(self, block: Block, extents: tuple[int, ...], B: int, device: torch.device) -> None:
        self.block = block
        self.B = B
        self.plan: Plan = plan(extents, block.untied, device)
        starts = [sum(block.sizes[:n]) for n in range(len(extents))]
        self.columns = [slice(a, a + size) for a, size in zip(starts, block.sizes, strict=True)]
        self.stage_of = {n: k for k, stage in enumerate(block.stages) for n in stage}
        self.gates: dict[int, slice] = {}
        self.num_gates: list[int] = []  # G of each stage
        for stage in block.stages:
            G = 0
            for n in stage:
                rows = block.cells[n].num_gates * block.sizes[n]
                self.gates[n] = slice(G, G + rows)
                G += rows
            self.num_gates.append(G)

    def packed(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor | None]]:
        """Each stage's weight (copies, G, D) and bias (copies, G)."""
        result = []
        for stage in self.block.stages:
            weight = torch.cat([weights[n] for n in stage], dim=-2)
            bias = None
            if any(biases[n] is not None for n in stage):
                parts = [weights[n][..., 0].new_zeros(()) if biases[n] is None else biases[n] for n in stage]
                bias = torch.cat(
                    [
                        part.expand(weights[n].shape[:-1])
                        for n, part in zip(stage, parts, strict=True)
                        if part is not None
                    ],
                    dim=-1,
                ).reshape(-1, weight.shape[-2])
            result.append((weight.reshape(-1, *weight.shape[-2:]), bias))
        return result

    def preactivations(self, diagonal: Diagonal, X: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
        """z = W H + b of one diagonal and stage: X (r, B, D), out (r, B, G)."""
        for copy, rows in diagonal.copies:
            x, z = X[rows].flatten(0, 1), out[rows].flatten(0, 1)
            if bias is None:
                torch.mm(x, weight[copy].t(), out=z)
            else:
                torch.addmm(bias[copy], x, weight[copy].t(), out=z)
        return out

    def backward_data(self, diagonal: Diagonal, dz: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """dH = dz W of one diagonal and stage: dz (r, B, G), out (r, B, D)."""
        for copy, rows in diagonal.copies:
            torch.mm(dz[rows].flatten(0, 1), weight[copy], out=out[rows].flatten(0, 1))
        return out


def _put(buffer: Tensor, to: Runs | Tensor, values: Tensor) -> None:
    """buffer (rows, B, d) <- values (r, B, d) at the successors' rows."""
    if isinstance(to, Tensor):
        buffer.index_copy_(0, to, values)
    else:
        for source, target in to:
            buffer[target].copy_(values[source])


def _take(buffer: Tensor, at: Runs | Tensor) -> Tensor:
    """The successors' rows of a buffer, in the order of the diagonal: (r, B, d), a view where possible."""
    if isinstance(at, Tensor):
        return buffer.index_select(0, at)
    if len(at) == 1:
        return buffer[at[0][1]]
    return torch.cat([buffer[target] for _, target in at])


class _Wavefront(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Block, extents: tuple[int, ...], *tensors: Any) -> tuple[Tensor, ...]:
        N = len(extents)
        weights, biases, side_h, side_m = (tensors[i * N : (i + 1) * N] for i in range(4))
        B, D = side_h[0].shape[-2], sum(block.sizes)
        layout = _Layout(block, extents, B, weights[0].device)
        cells = [pointwise(cell) for cell in block.cells]
        empty = weights[0].new_empty
        rows, C = layout.plan.rows, layout.plan.blocks

        # X[k] holds what stage k multiplies. A dimension of an earlier stage appears there already updated.
        X = [empty(rows, B, D) for _ in block.stages]
        M = [empty(rows, B, m.shape[-1]) for m in side_m]
        Z = [empty(C, B, G) for G in layout.num_gates]
        for n, columns in enumerate(layout.columns):
            entries = layout.plan.entries[n]
            for k in range(layout.stage_of[n] + 1):
                X[k][:, :, columns].index_copy_(0, entries, side_h[n].reshape(-1, B, block.sizes[n]))
            M[n].index_copy_(0, entries, side_m[n].reshape(-1, B, M[n].shape[-1]))

        packed = layout.packed(weights, biases)
        for diagonal in layout.plan.diagonals:
            here = diagonal.rows
            for k, stage in enumerate(block.stages):
                z = layout.preactivations(diagonal, X[k][here], *packed[k], out=Z[k][here])
                for n in stage:
                    columns, to = layout.columns[n], diagonal.successors[n]
                    h, m = cells[n].forward(
                        z[:, :, layout.gates[n]].flatten(0, 1),
                        X[k][here, :, columns].flatten(0, 1),
                        M[n][here].flatten(0, 1),
                    )
                    h, m = h.view(-1, B, h.shape[-1]), m.view(-1, B, m.shape[-1])
                    for j, slots in enumerate(X):
                        if j <= k:
                            _put(slots[:, :, columns], to, h)
                        else:
                            slots[here, :, columns] = h
                    _put(M[n], to, m)

        ctx.layout, ctx.Z, ctx.extents = layout, Z, extents
        ctx.side_shapes = [h.shape for h in side_h], [m.shape for m in side_m]
        ctx.save_for_backward(*weights, *biases, *X, *M)
        return tuple(
            X[0][C : C + layout.plan.exits[n], :, layout.columns[n]].reshape(side_h[n].shape).clone() for n in range(N)
        ) + tuple(M[n][C : C + layout.plan.exits[n]].reshape(side_m[n].shape).clone() for n in range(N))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise UserError(
                "the wavefront sweep has no second derivatives: choose sweep=reference to differentiate twice."
            )
        layout: _Layout = ctx.layout
        block, B, C = layout.block, layout.B, layout.plan.blocks
        N, K = len(block.cells), len(block.stages)
        saved = ctx.saved_tensors
        weights, biases, X, M = saved[:N], saved[N : 2 * N], saved[2 * N : 2 * N + K], saved[2 * N + K :]
        cells = [pointwise(cell) for cell in block.cells]
        packed = layout.packed(weights, biases)
        # The first backward pass turns the kept gates into their gradients; a second one through the same graph
        # (retain_graph) computes them again.
        kept, ctx.Z = ctx.Z, None
        Z = kept or [X[k].new_empty(C, B, G) for k, G in enumerate(layout.num_gates)]

        dH = torch.empty_like(X[0])  # gradient of what enters each block, and behind row C of what leaves the grid
        dM = [torch.empty_like(m) for m in M]
        for n, columns in enumerate(layout.columns):
            leaving = slice(C, C + layout.plan.exits[n])
            dH[leaving, :, columns] = grads[n].reshape(-1, B, block.sizes[n])
            dM[n][leaving] = grads[N + n].reshape(-1, B, M[n].shape[-1])

        for diagonal in reversed(layout.plan.diagonals):
            here = diagonal.rows
            if kept is None:
                for k, stage in enumerate(block.stages):
                    z = layout.preactivations(diagonal, X[k][here], *packed[k], out=Z[k][here])
                    for n in stage:
                        cells[n].forward(
                            z[:, :, layout.gates[n]].flatten(0, 1),
                            X[k][here, :, layout.columns[n]].flatten(0, 1),
                            M[n][here].flatten(0, 1),
                        )
            dh = [_take(dH[:, :, columns], diagonal.successors[n]) for n, columns in enumerate(layout.columns)]
            for k in reversed(range(K)):
                direct: list[tuple[slice, Tensor]] = []
                for n in block.stages[k]:
                    columns, to = layout.columns[n], diagonal.successors[n]
                    gradient = cells[n].backward(
                        Z[k][here, :, layout.gates[n]].flatten(0, 1),
                        X[k][here, :, columns].flatten(0, 1),
                        M[n][here].flatten(0, 1),
                        HiddenMemory(_take(X[0][:, :, columns], to).flatten(0, 1), _take(M[n], to).flatten(0, 1)),
                        HiddenMemory(dh[n].flatten(0, 1), _take(dM[n], to).flatten(0, 1)),
                    )
                    dM[n][here] = gradient.m.view(-1, B, M[n].shape[-1])
                    if gradient.h is not None:
                        direct.append((columns, gradient.h.view(-1, B, block.sizes[n])))
                if k == K - 1:
                    layout.backward_data(diagonal, Z[k][here], packed[k][0], out=dH[here])
                    if K > 1:
                        earlier = [n for n in range(N) if layout.stage_of[n] < k]
                        for n in earlier:
                            dh[n] = dh[n] + dH[here, :, layout.columns[n]]
                            dH[here, :, layout.columns[n]] = 0
                else:
                    d = layout.backward_data(diagonal, Z[k][here], packed[k][0], out=torch.empty_like(dH[here]))
                    for n, columns in enumerate(layout.columns):
                        if layout.stage_of[n] < k:
                            dh[n] = dh[n] + d[:, :, columns]
                        else:
                            dH[here, :, columns] += d[:, :, columns]
                for columns, gradient_h in direct:
                    dH[here, :, columns] += gradient_h

        grad_weights, grad_biases = _weight_gradients(layout, X, Z, weights, biases)
        grad_h = [
            dH[:, :, columns].index_select(0, layout.plan.entries[n]).view(ctx.side_shapes[0][n])
            for n, columns in enumerate(layout.columns)
        ]
        grad_m = [dM[n].index_select(0, layout.plan.entries[n]).view(ctx.side_shapes[1][n]) for n in range(N)]
        return None, None, *grad_weights, *grad_biases, *grad_h, *grad_m


def _weight_gradients(
    layout: _Layout,
    X: Sequence[Tensor],
    dZ: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[Tensor | None]]:
    """dW = sum over all blocks and rows of dz H^T, one product for each weight copy; db = sum of dz."""
    grad_weights: dict[int, Tensor] = {}
    grad_biases: dict[int, Tensor | None] = {}
    C, copies = layout.plan.blocks, layout.plan.by_copy
    for k, stage in enumerate(layout.block.stages):
        dz, x = dZ[k], X[k][:C]
        if len(copies) == 1:
            rows = [(dz.flatten(0, 1), x.flatten(0, 1))]
        else:
            rows = [(dz.index_select(0, at).flatten(0, 1), x.index_select(0, at).flatten(0, 1)) for at in copies]
        grad_weight = torch.stack([a.t() @ b for a, b in rows])  # (copies, G, D)
        grad_bias = torch.stack([a.sum(0) for a, _ in rows])  # (copies, G)
        for n in stage:
            grad_weights[n] = grad_weight[:, layout.gates[n]].reshape(weights[n].shape)
            bias = biases[n]
            grad_biases[n] = None if bias is None else grad_bias[:, layout.gates[n]].reshape(bias.shape)
    N = len(weights)
    return [grad_weights[n] for n in range(N)], [grad_biases[n] for n in range(N)]
