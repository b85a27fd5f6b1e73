"""The paper's baseline, the stacked LSTM (section 2.2): memory along time only.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.engine.dispatch import ChainName, chain_named, check_sweep_name, check_weights, needs_plain_ops
from gridlstm.engine.operands import autocast_type
from gridlstm.errors import check_dropout, check_true_or_false
from gridlstm.grid import Transform
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes, start_weights_within
from gridlstm.scan import Weights


class StackedLSTMState(NamedTuple):
    """State carried between time steps: the hidden and memory vectors of every layer."""

    h: Tensor
    """(L, B, d)"""
    m: Tensor
    """(L, B, d)"""


class StackedLSTM(SequenceModel):
    """L layers of (h', m') = LSTM(H, m, W) with H = [x; h], x the h' of the layer below or the projected input.

    The output is the top h', of length d. Each layer has 8 d^2 weights.

    The usual LSTM, ``LSTM(output="standard")``, runs on the kernel of ``torch.nn.LSTM`` (oneDNN, cuDNN), except under
    autocast. Every other cell, including the paper's, runs in this package's loop over time. cuDNN may round its
    products to TF32 (``torch.backends.cudnn.allow_tf32``, on by default); otherwise the two differ only in speed.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L.
        time: the cell along time.
        tied: share one weight set over all layers.
        dropout: probability of dropping elements of a layer's h' for the next layer and for the output, not for the
            next step (Zaremba et al. 2014).
        sweep: "auto", or "reference" for the plain loop, which can be differentiated twice.
        init_bound: initialize all weights in U(-init_bound, init_bound), including those of a task's read-out; None
            for the initialization of the cell.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        time: Cell = LSTM(),
        tied: bool = False,
        dropout: float = 0.0,
        sweep: ChainName = "auto",
        init_bound: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        check_cell("time", time)
        check_true_or_false(tied=tied)
        check_dropout(dropout)
        check_sweep_name(sweep, ChainName)
        self.input_size = input_size
        self.output_size = hidden_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell = time
        self.input = InputProjection(input_size, hidden_size)
        self.layers = Transform(
            time,
            hidden_size,
            2 * hidden_size,
            slice(hidden_size, 2 * hidden_size),
            copies=() if tied else (num_layers,),
        )
        self.tied = tied
        self.dropout = dropout
        self.sweep = sweep
        self.init_bound = init_bound
        if init_bound is not None:
            start_weights_within(self, init_bound)

    def initial_state(self, batch_size: int) -> StackedLSTMState:
        zeros = self.input.weight.new_zeros
        return StackedLSTMState(
            zeros(self.num_layers, batch_size, self.hidden_size),
            zeros(self.num_layers, batch_size, self.cell.memory_size(self.hidden_size)),
        )

    def forward(self, x: Tensor, state: StackedLSTMState | None = None) -> tuple[Tensor, StackedLSTMState]:
        y = self.input(x).transpose(0, 1)  # (T, B, d)
        state = self.state_before(state, y.shape[1])  # the kernel does not check it
        self.layers()
        packed = self.layers.packed(() if self.tied else (self.num_layers,))
        check_weights("the layers", packed, self.input.weight)
        copies = packed.copies(0 if self.tied else 1)
        layers = copies * self.num_layers if self.tied else copies
        usual = type(self.cell) is LSTM and self.cell.output == "standard"
        # Under autocast the kernel would carry its memory in half precision.
        if self.sweep == "auto" and usual and autocast_type(state.h) is None and not needs_plain_ops(y):
            return self._by_kernel(y, state, layers)
        run = chain_named(self.sweep, self.cell, y)
        last = []
        for weights, h, m in zip(layers, *state, strict=True):
            outputs, end = run(self.cell, weights, y, HiddenMemory(h, m))
            y = F.dropout(outputs, self.dropout, self.training)
            last.append(end)
        return y.transpose(0, 1), StackedLSTMState(*(torch.stack(x) for x in zip(*last, strict=True)))

    def _by_kernel(self, y: Tensor, state: StackedLSTMState, layers: list[Weights]) -> tuple[Tensor, StackedLSTMState]:
        """Complete ``forward`` with the kernel of ``torch.nn.LSTM``."""
        flat = []
        for weight, bias, _ in layers:
            flat += _torch_order(weight).split(self.hidden_size, dim=-1)
            if bias is not None:
                flat += [_torch_order(bias), torch.zeros_like(bias)]  # torch has two biases and adds them
        y, h, m = torch.lstm(
            y,
            tuple(x.contiguous() for x in state),
            flat,
            has_biases=len(flat) > 2 * self.num_layers,
            num_layers=self.num_layers,
            dropout=self.dropout if self.training else 0.0,
            train=self.training or torch.is_grad_enabled(),  # else cuDNN saves nothing for the backward pass
            bidirectional=False,
            batch_first=False,
        )
        return F.dropout(y, self.dropout, self.training).transpose(0, 1), StackedLSTMState(h, m)


def _torch_order(packed: Tensor) -> Tensor:
    """Reorder gates from (u, f, o, c) to (u, f, c, o)."""
    u, f, o, c = packed.chunk(4)
    return torch.cat([u, f, c, o])
