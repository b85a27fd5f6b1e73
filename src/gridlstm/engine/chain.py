"""A chain of LSTM cells along time whose steps read an outside input: one layer of a stacked LSTM.

As in ``gridlstm.engine.packed``, the input of all steps is one product, each step adds its recurrent product in place,
and the weight gradient is computed for all steps at once, outside the chain.

Shape legend: B batch rows, T time steps, e input size of a step, d hidden size, G = num_gates * d.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import Cell, HiddenMemory
from gridlstm.engine.buffers import Buffers, Layout
from gridlstm.engine.fused import chained_step
from gridlstm.engine.matmul import affine, fastest_product, multiply, multiply_transposed
from gridlstm.engine.memory import empty
from gridlstm.engine.operands import autocast_type
from gridlstm.engine.packed import split_biases, steps
from gridlstm.engine.passes import as_it_is, backward_pass, save, saved
from gridlstm.scan import Block, Weights


class Chained(NamedTuple):
    """Results of a chain."""

    outputs: Tensor
    """(T, B, d) h' of every step"""
    last: HiddenMemory
    """h' and m' of the last step"""


def reference_chain(cell: Cell, weights: Weights, x: Tensor, start: HiddenMemory) -> Chained:
    """Compute (h', m') = cell(H, m) with H = [x_t; h] for t = 1, …, T in a plain loop.

    Args:
        cell: the transform.
        weights: (G, e + d), (G,) or None, and the cell's vectors.
        x: (T, B, e), at least one step.
        start: (B, d) and (B, memory size).
    """
    from_outside, from_before = weights.weight.split([x.shape[-1], start.h.shape[-1]], dim=-1)
    h, m = start
    outputs = []
    # Autocast changes only the type of the products. The first is computed for all steps at once.
    for z in F.linear(x, from_outside, weights.bias).to(h.dtype):
        h, m = cell.pointwise(z + F.linear(h, from_before).to(h.dtype), h, m, *weights.vectors)
        outputs.append(h)
    return Chained(torch.stack(outputs), HiddenMemory(h, m))


@as_it_is
def chain(cell: Cell, weights: Weights, x: Tensor, start: HiddenMemory) -> Chained:
    """Compute ``reference_chain`` faster, equal in value and gradient. Under autocast, products run in its type.

    For cells whose gradient reaches h only through the matrix product, such as the LSTM.

    Raises:
        UserError: if a second derivative is requested (``create_graph=True``).
    """
    device, product_dtype = x.device.type, autocast_type(start.h)
    with torch.autocast(device, enabled=False):
        x = x.to(start.h.dtype)
        outputs, h, m = _Chain.apply(cell, product_dtype, x, weights.weight, weights.bias, *start, *weights.vectors)
    return Chained(outputs, HiddenMemory(h, m))


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        product_dtype: torch.dtype | None,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        h: Tensor,
        m: Tensor,
        *vectors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (T, B, _), d = x.shape, h.shape[-1]
        block = Block((cell,), (d,), ((0,),))
        layout = Layout(block, (T,), B, x.device, "diagonal", product_dtype)
        # Row t is the input of step t; row T the output of the last step.
        X, M, Z = empty(T + 1, B, d, like=h), empty(T + 1, B, m.shape[-1], like=m), empty(T, B, len(weight), like=h)
        X[0], M[0] = h, m
        buffers = Buffers(layout, [X], [M], [Z], [vectors])
        (by_product,) = split_biases(buffers, [bias])
        _feed(buffers, x, weight, by_product)
        (step,) = steps(buffers)
        recurrent = _recurrent(weight, d, product_dtype).t().contiguous()  # for products with few rows
        if (chained := chained_step(step, buffers)) is not None:
            chained.forward_chain(slice(0, T), recurrent)
        else:
            with fastest_product(h, layout.largest_product):
                # Unbound once: in small networks, indexing takes as long as the product.
                for step_t, h_t, z_t in zip(layout.plan.diagonals, X[:T].unbind(), Z.unbind(), strict=True):
                    multiply(h_t, recurrent, z_t, product_dtype, add=True)
                    step.forward(step_t)
        ctx.layout, ctx.has_gates = layout, True
        save(ctx, Z, x, weight, bias, X, M, *vectors)
        return X[1:].clone(), X[T].clone(), M[T].clone()

    @staticmethod
    @backward_pass("the fast loop has")
    def backward(ctx: Any, *grads: Tensor) -> Any:
        layout: Layout = ctx.layout
        gates, x, weight, bias, X, M, *vectors = saved(ctx)
        X, M = X.contiguous(), M.contiguous()
        (T, B, e), d, product_dtype = x.shape, X.shape[-1], layout.product_dtype
        # The first backward pass overwrites the kept gates, or a copy, with their gradients; see ``engine.packed``.
        kept, exact = ctx.has_gates, X.dtype == torch.float64
        ctx.has_gates = kept and exact
        if kept:
            Z = gates.clone(memory_format=torch.contiguous_format) if exact else gates.data.contiguous()
        else:
            Z = empty(T, B, len(weight), like=X)
        buffers = Buffers(layout, [X], [M], [Z], [tuple(vectors)])
        recurrent = _recurrent(weight, d, product_dtype)
        if not kept:
            _feed(buffers, x, weight, bias)
            multiply(X[:T].flatten(0, 1), recurrent.t(), Z.flatten(0, 1), product_dtype, add=True)
            steps(buffers)[0].restore(slice(0, T))
        dH = buffers.dH = empty(T + 1, B, d, like=X)
        dM = empty(*M.shape, like=M)
        buffers.dM = [dM]
        buffers.zero_vector_gradients()
        dH[0] = 0
        dH[1:], dM[T] = grads[0], grads[2]
        dH[T] += grads[1]
        (step,) = steps(buffers, backward=True)
        if (chained := chained_step(step, buffers)) is not None:
            chained.backward_chain(slice(0, T), recurrent)
        else:
            with fastest_product(X, layout.largest_product):
                for step_t, dz_t, dh_t in zip(
                    layout.plan.diagonals[::-1], Z.unbind()[::-1], dH[:T].unbind()[::-1], strict=True
                ):
                    step.backward(step_t, None)
                    multiply(dz_t, recurrent, dh_t, product_dtype, add=True)
        dz, rows = Z.flatten(0, 1), T * B
        dx, dW = empty(rows, e, like=X), torch.empty_like(weight)
        with fastest_product(X, 2 * rows * dW.numel()):
            multiply(dz, weight[:, :e].to(product_dtype or weight.dtype), dx, product_dtype)
            if ctx.needs_input_grad[3]:
                multiply_transposed(dz, x.flatten(0, 1), dW[:, :e], product_dtype)
                multiply_transposed(dz, X[:T].flatten(0, 1), dW[:, e:], product_dtype)
        db = dz.sum(0) if ctx.needs_input_grad[4] else None
        grad_vectors = buffers.vector_gradients(vectors)
        return None, None, dx.view(x.shape), dW if ctx.needs_input_grad[3] else None, db, dH[0], dM[0], *grad_vectors


def _feed(buffers: Buffers, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Write the outside input of all steps into Z."""
    product_dtype, (Z,) = buffers.layout.product_dtype, buffers.Z
    from_outside = weight[:, : x.shape[-1]].to(product_dtype or weight.dtype)
    with fastest_product(x, 2 * len(Z) * buffers.layout.B * from_outside.numel()):
        affine(x.flatten(0, 1), from_outside.t(), bias, Z.flatten(0, 1), product_dtype)


def _recurrent(weight: Tensor, d: int, product_dtype: torch.dtype | None) -> Tensor:
    """Return the columns that multiply h: (G, d)."""
    return weight[:, -d:].to(product_dtype or weight.dtype).contiguous()
