"""Sweeps in bfloat16 whose steps read and write it themselves.

Under autocast in bfloat16, ``multiply`` converts every operand to it and every result back. Where the processor has a
bfloat16 unit, these passes over memory take longer than the products. Here a step reads pre-activations in bfloat16,
and writes h' and the gradients of pre-activations in bfloat16 too. Compiled steps, C or Triton, convert in registers;
steps of other cells convert their own columns. The sweep keeps the pre-activations, as they are, instead of gates in
float32, and computes the gates again in the backward pass. Everything else stays in float32, and the numbers are the
same, except sums of gradients of pre-activations that no step in C adds up: their terms are rounded first.

Shape legend: as in ``gridlstm.engine.buffers``.
"""

import torch

from gridlstm.cells import LayerNormLSTM
from gridlstm.engine.buffers import Buffers
from gridlstm.engine.fused import adds_bias, pointwise_step
from gridlstm.engine.plan import Order
from gridlstm.engine.triton_step import triton_fits


def is_low(buffers: Buffers, order: Order) -> bool:
    """Return True if the steps of this sweep read and write bfloat16."""
    cells = buffers.layout.block.cells
    if buffers.layout.product_dtype != torch.bfloat16 or any(type(cell) is LayerNormLSTM for cell in cells):
        return False  # the compiled step of LayerNormLSTM reads floats
    if pointwise_step() == "triton":
        return order == "diagonal" and any(triton_fits(cell, buffers.X[0]) for cell in cells)
    return (order == "diagonal" or (order == "layer" and buffers.factors is None)) and any(
        adds_bias(n, buffers) for n in range(len(cells))
    )
