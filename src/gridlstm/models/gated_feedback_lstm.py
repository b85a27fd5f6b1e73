"""The gated-feedback LSTM (Chung, Gulcehre, Cho, Bengio 2015, arXiv 1502.02367): every layer feeds back to all layers.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import fan_in_uniform, standard_output
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes


class GatedFeedbackLSTMState(NamedTuple):
    """State carried between time steps: the hidden and memory vectors of every layer."""

    h: Tensor
    """(L, B, d)"""
    m: Tensor
    """(L, B, d)"""


class GatedFeedbackLSTM(SequenceModel):
    """GF-LSTM, the best of the paper's networks: the candidate of layer j sees the last hidden vectors of all layers.

    A scalar, the global reset gate g^{i->j}, weights the input from layer i. With x = h'^{j-1}, and h* the hidden
    vectors of all layers at the previous step, [h^1; ...; h^L]::

        g^{i->j} = sigma(w^{i->j} x + r^{i->j} h* + b)                           for every i
        (u, f, o) = sigma(W_{u,f,o} x + U_{u,f,o} h^j + b_{u,f,o})               only the layer's own h
        c = tanh(W_c x + sum_i g^{i->j} U_c^{i->j} h^i + b_c)
        m' = f . m + u . c
        h' = o . tanh(m')

    The paper calls r u_g and has no biases.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L. Weights grow as L^2.
        forget_bias: the initial b_f.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, forget_bias: float = 1.0) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.input = InputProjection(input_size, hidden_size)
        # Packed order: u, f, o, c, and the L gates g^{1->j} ... g^{L->j}.
        self.from_below = nn.Parameter(torch.empty(num_layers, 4 * hidden_size + num_layers, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_layers, 4 * hidden_size + num_layers))
        self.from_before = nn.Parameter(torch.empty(num_layers, 3 * hidden_size, hidden_size))
        self.feedback = nn.Parameter(torch.empty(num_layers, num_layers * hidden_size, hidden_size))
        """[i, j * d :][:d] is U_c^{i->j}."""
        self.reset = nn.Parameter(torch.empty(num_layers, num_layers, num_layers * hidden_size))
        """[j, i] is r^{i->j}."""
        self.forget_bias = forget_bias
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fan_in_uniform(self.from_below, gain=0.5**0.5)  # x and h together are the fan-in
        fan_in_uniform(self.from_before, gain=0.5**0.5)
        fan_in_uniform(self.feedback, gain=(0.5 / self.num_layers) ** 0.5)
        fan_in_uniform(self.reset, gain=0.5**0.5)
        self.bias.zero_()
        self.bias[:, self.hidden_size : 2 * self.hidden_size] = self.forget_bias

    def initial_state(self, batch_size: int) -> GatedFeedbackLSTMState:
        zeros = self.input.weight.new_zeros(self.num_layers, batch_size, self.hidden_size)
        return GatedFeedbackLSTMState(zeros, zeros.clone())

    def forward(self, x: Tensor, state: GatedFeedbackLSTMState | None = None) -> tuple[Tensor, GatedFeedbackLSTMState]:
        L, d = self.num_layers, self.hidden_size
        below, biases = self.from_below.unbind(), self.bias.unbind()
        # One product per step computes everything that depends on the previous step: feedback and recurrent terms.
        recurrent = torch.cat([self.feedback, self.from_before], dim=1).transpose(1, 2)  # (L, d, (L + 3) d)
        resets = self.reset.flatten(0, 1)  # (L L, L d)
        bottom = F.linear(self.input(x).transpose(0, 1), below[0], biases[0])  # (T, B, 4d + L)
        state = self.state_before(state, bottom.shape[1])
        h, ms = state.h, state.m.unbind()
        outputs = []
        for z in bottom.unbind():
            told, own = torch.bmm(h, recurrent).split([L * d, 3 * d], dim=-1)  # (L, B, L d), (L, B, 3d)
            told = told.unflatten(-1, (L, d))  # (from i, B, to j, d)
            gates = F.linear(h.transpose(0, 1).flatten(1), resets).unflatten(-1, (L, L))  # (B, to j, from i)
            hs: list[Tensor] = []
            memories: list[Tensor] = []
            for j in range(L):
                if j > 0:
                    z = F.linear(hs[-1], below[j], biases[j])
                z_own, z_c, z_g = z.split([3 * d, d, L], dim=-1)
                u, f, o = (z_own + own[j]).sigmoid().chunk(3, dim=-1)
                g = (z_g + gates[:, j]).sigmoid()  # (B, from i)
                c = (z_c + torch.einsum("bi,ibd->bd", g, told[:, :, j])).tanh()
                memories.append(f * ms[j] + u * c)
                hs.append(standard_output(o, memories[-1]))
            h, ms = torch.stack(hs), tuple(memories)
            outputs.append(hs[-1])
        return torch.stack(outputs, dim=1), GatedFeedbackLSTMState(h, torch.stack(ms))
