"""The depth-gated LSTM (Yao, Cohn, Vylomova, Duh, Dyer 2015, arXiv 1508.03790): a gate passes memory up.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import fan_in_uniform, standard_output
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes


class DepthGatedLSTMState(NamedTuple):
    """State carried between time steps: the hidden and memory vectors of every layer."""

    h: Tensor
    """(L, B, d)"""
    m: Tensor
    """(L, B, d)"""


class DepthGatedLSTM(SequenceModel):
    """Stacked LSTM whose memory cells are connected along depth by an additional gate, v.

    Layer l reads x = h'^{l-1} and the memory below, m^- = m'^{l-1}; products "." are elementwise, w are vectors::

        u = sigma(W_u x + U_u h + w_u . m  + b_u)
        f = sigma(W_f x + U_f h + w_f . m  + b_f)
        v = sigma(W_v x         + w_v . m  + r . m^- + b_v)
        m' = v . m^- + f . m + u . tanh(W_c x + U_c h + b_c)
        o = sigma(W_o x + U_o h + w_o . m' + b_o)
        h' = o . tanh(m')

    The first layer has no memory below: there m^- = W_0 x, and v has no term r. The paper calls (u, v, m) (i, d, c).
    Cell-to-gate weights w are diagonal, as in Graves 2013 (arXiv 1308.0850), whose LSTM the paper extends.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L.
        forget_bias: the initial b_f.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, forget_bias: float = 1.0) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.input = InputProjection(input_size, hidden_size)
        self.layers = nn.ModuleList(_Layer(hidden_size, n == 0, forget_bias) for n in range(num_layers))

    def initial_state(self, batch_size: int) -> DepthGatedLSTMState:
        zeros = self.input.weight.new_zeros(self.num_layers, batch_size, self.hidden_size)
        return DepthGatedLSTMState(zeros, zeros.clone())

    def forward(self, x: Tensor, state: DepthGatedLSTMState | None = None) -> tuple[Tensor, DepthGatedLSTMState]:
        y = self.input(x).transpose(0, 1)  # (T, B, d)
        state = self.state_before(state, y.shape[1])
        memories: Tensor | None = None
        last = []
        for layer, h, m in zip(self.layers, state.h, state.m, strict=True):
            y, memories = layer(y, memories, h, m)
            last.append((y[-1], memories[-1]))
        h, m = (torch.stack(vectors) for vectors in zip(*last, strict=True))
        return y.transpose(0, 1), DepthGatedLSTMState(h, m)


class _Layer(nn.Module):
    """One layer over all time steps. Packed order: u, f, o, c, v; peepholes of u, f, v, o."""

    def __init__(self, size: int, first: bool, forget_bias: float) -> None:
        super().__init__()
        self.from_below = nn.Linear(size, 5 * size)
        self.from_before = nn.Linear(size, 4 * size, bias=False)
        self.peepholes = nn.Parameter(torch.zeros(4, size))
        self.memory_below = nn.Linear(size, size, bias=False) if first else None
        self.depth_peephole = None if first else nn.Parameter(torch.zeros(size))
        with torch.no_grad():
            fan_in_uniform(self.from_below.weight, gain=0.5**0.5)  # x and h together are the fan-in
            fan_in_uniform(self.from_before.weight, gain=0.5**0.5)
            self.from_below.bias.zero_()
            self.from_below.bias.chunk(5)[1].fill_(forget_bias)
            if self.memory_below is not None:
                fan_in_uniform(self.memory_below.weight, gain=1.0)

    def forward(self, x: Tensor, below: Tensor | None, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (T, B, d) hidden and memory vectors of all steps, given those of the layer below."""
        size = h.shape[-1]
        z, z_v = self.from_below(x).split([4 * size, size], dim=-1)  # all steps at once: none depends on another
        if self.memory_below is not None:
            below = self.memory_below(x)
        else:
            assert below is not None
            assert self.depth_peephole is not None
            z_v = z_v + self.depth_peephole * below
        w_u, w_f, w_v, w_o = self.peepholes.unbind()
        hs, ms = [], []
        for z_t, z_v_t, below_t in zip(z.unbind(), z_v.unbind(), below.unbind(), strict=True):
            z_u, z_f, z_o, z_c = (z_t + F.linear(h, self.from_before.weight)).chunk(4, dim=-1)
            u, f, v = (z_u + w_u * m).sigmoid(), (z_f + w_f * m).sigmoid(), (z_v_t + w_v * m).sigmoid()
            m = v * below_t + f * m + u * z_c.tanh()
            h = standard_output((z_o + w_o * m).sigmoid(), m)
            hs.append(h)
            ms.append(m)
        return torch.stack(hs), torch.stack(ms)
