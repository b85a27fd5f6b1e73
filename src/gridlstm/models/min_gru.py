"""minGRU (Feng, Tung, Ahmed, Bengio, Hajimirsadeghi 2024, arXiv 2410.01201): a linear recurrence, scanned in parallel.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gridlstm.engine.dispatch import needs_plain_ops
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes
from gridlstm.models.residual import ResidualBlock, reset_linear


class MinGRUState(NamedTuple):
    """State carried between time steps."""

    h: Tensor
    """(L, B, d)"""


class MinGRU(SequenceModel):
    """Pre-norm blocks (``ResidualBlock``) of minGRU, a GRU whose gate does not depend on h, and a final layer norm::

        z = sigma(W_z x + b_z)
        h' = (1 - z) . h + z . g(W_h x + b_h),   g(a) = a + 1/2 if a >= 0, else sigma(a)

    starting from h = g(0) = 1/2. The function g comes from the paper's log-space form (appendix B) and keeps h
    positive. Because z and g do not depend on h, all steps are computed in about log2 T rounds (``linear_scan``).
    Log space is not needed: the scan by doubling multiplies factors 1 - z between 0 and 1, and never divides.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.input = InputProjection(input_size, hidden_size)
        self.blocks = nn.ModuleList(
            ResidualBlock(_Mixer(hidden_size), hidden_size, num_layers) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def initial_state(self, batch_size: int) -> MinGRUState:
        return MinGRUState(self.input.weight.new_full((len(self.blocks), batch_size, self.hidden_size), 0.5))

    def forward(self, x: Tensor, state: MinGRUState | None = None) -> tuple[Tensor, MinGRUState]:
        y = self.input(x)  # (B, T, d)
        state = self.state_before(state, len(y))
        last = []
        for block, h in zip(self.blocks, state.h, strict=True):
            y, h = block(y, h)
            last.append(h)
        return self.norm(y), MinGRUState(torch.stack(last))


class _Mixer(nn.Module):
    """minGRU itself; its addition to the residual stream is not scaled down with depth."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate_and_candidate = nn.Linear(size, 2 * size)  # packed order: z, h
        reset_linear(self.gate_and_candidate, gain=1.0)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        # Autocast changes only the type of the product: sums over time stay as precise as the state.
        z, candidate = self.gate_and_candidate(x).to(h.dtype).chunk(2, dim=-1)
        positive = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        y = linear_scan((-z).sigmoid(), z.sigmoid() * positive, h)
        return y, y[:, -1]


def linear_scan(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """Compute h_t = a_t . h_{t-1} + b_t for all t, in about log2 T rounds; its gradient is the same scan backwards.

    Args:
        a: (B, T, d), best between 0 and 1, because they are multiplied with each other.
        b: (B, T, d)
        h: (B, d), before the first step.

    Returns:
        (B, T, d)
    """
    if needs_plain_ops(b):
        return _by_doubling(a, _with_start(a, b, h))
    return _LinearScan.apply(a, b, h)


def _with_start(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """Add a_1 . h to the first step of b, so that a scan from zero gives the same result."""
    return torch.cat([torch.addcmul(b[:, :1], a[:, :1], h[:, None]), b[:, 1:]], dim=1)


def _by_doubling(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``linear_scan`` from zero: after the round of n, step t holds the sum of its last 2n terms."""
    n = 1
    while n < a.shape[1]:
        b = torch.cat([b[:, :n], torch.addcmul(b[:, n:], a[:, n:], b[:, :-n])], dim=1)
        a = torch.cat([a[:, :n], a[:, n:] * a[:, :-n]], dim=1)
        n *= 2
    return b


class _LinearScan(torch.autograd.Function):
    """Scan that saves only a, h and the result for the backward pass; autograd would save every round."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        y = _by_doubling(a, _with_start(a, b, h))
        ctx.save_for_backward(a, y, h)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # With G_t the total gradient with respect to h_t: G_t = g_t + a_{t+1} . G_{t+1}.
        a, y, h = ctx.saved_tensors
        zero = torch.zeros_like(a[:, :1])
        later = torch.cat([zero, a.flip(1)[:, :-1]], dim=1)
        G = linear_scan(later, gradients[0].flip(1), zero[:, 0]).flip(1)
        return G * torch.cat([h[:, None], y[:, :-1]], dim=1), G, G[:, 0] * a[:, 0]
