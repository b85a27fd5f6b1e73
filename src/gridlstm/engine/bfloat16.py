"""Sweeps in bfloat16 whose steps read and write it themselves.

Under autocast in bfloat16, ``multiply`` converts every operand to it and every result back. Where the processor has a
bfloat16 unit, these passes over memory take longer than the products. Here a step reads pre-activations in bfloat16,
and writes h' and the gradients of pre-activations in bfloat16 too. Compiled steps convert in registers; steps of other
cells convert their own columns. The sweep keeps the pre-activations, as they are, instead of gates in float32, and
computes the gates again in the backward pass. Everything else stays in float32, and the numbers are the same.

Shape legend: as in ``gridlstm.engine.buffers``.
"""

import torch

from gridlstm.cells import LayerNormLSTM
from gridlstm.engine.buffers import Buffers
from gridlstm.engine.fused import adds_bias, pointwise_step
from gridlstm.engine.plan import Order


def is_low(buffers: Buffers, order: Order) -> bool:
    """Return True if the steps of this sweep read and write bfloat16."""
    layout = buffers.layout
    return (
        layout.product_dtype == torch.bfloat16
        and (order == "diagonal" or (order == "layer" and buffers.factors is None))
        and pointwise_step() == "fused"
        and any(adds_bias(n, buffers) for n in range(len(layout.columns)))
        and not any(type(cell) is LayerNormLSTM for cell in layout.block.cells)  # its compiled step reads floats
    )
