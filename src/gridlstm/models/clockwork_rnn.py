"""The clockwork RNN (Koutnik, Greff, Gomez, Schmidhuber 2014, arXiv 1402.3511): modules that update at different rates.

Shape legend: B batch rows, T time steps, L layers, d hidden size, g modules.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import fan_in_uniform
from gridlstm.configured import Configured
from gridlstm.errors import UserError
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes


class ClockworkRNNState(NamedTuple):
    """State carried between time steps."""

    h: Tensor
    """(L, B, d)"""
    clock: Tensor
    """(1, B) int64: the number t of the next step. One per row, because rows may be reset separately."""


class ClockworkRNN(Configured, SequenceModel):
    """CW-RNN: hidden units in g modules; module i is updated only at steps t with t mod T_i = 0.

    h'_i = tanh(sum_{k >= i} W_H^{ik} h_k + W_I^i x + b_i) if t mod T_i = 0, else h'_i = h_i. Modules are ordered by
    period, and a module sees only itself and slower ones: W_H is block upper triangular, and only its blocks are
    parameters. The first step is t = 0, when all modules are updated.

    The paper has one layer; further layers are stacked, each reading the h' of the layer below. All units are computed
    at every step, and inactive ones then keep their value, so the time that the paper saves is not saved here.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d, at least g; divided as evenly as possible over the modules, the fastest get the remainder.
        num_layers: L.
        periods: T_1 < ... < T_g; the paper's are powers of two.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        periods: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    ) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        whole = all(type(period) is int for period in periods)
        if not periods or not whole or min(periods) < 1 or sorted(set(periods)) != list(periods):
            raise UserError(f"periods must be increasing whole numbers from 1, such as [1, 2, 4], got {list(periods)}.")
        if hidden_size < len(periods):
            raise UserError(
                f"every module needs a unit: expected hidden_size of at least {len(periods)} for periods="
                f"{list(periods)}, got {hidden_size}. Increase it, or give fewer periods."
            )
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.input = InputProjection(input_size, hidden_size)
        sizes = [len(part) for part in torch.arange(hidden_size, device="cpu").tensor_split(len(periods))]
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(num_layers))
        self.modules_of = list(zip(sizes, periods, strict=True))
        """Units and period of each module."""

    def configured(self) -> dict[str, Any]:
        return {"periods": [period for _, period in self.modules_of]}

    def initial_state(self, batch_size: int) -> ClockworkRNNState:
        weight = self.input.weight
        return ClockworkRNNState(
            weight.new_zeros(self.num_layers, batch_size, self.hidden_size),
            weight.new_zeros(1, batch_size, dtype=torch.int64),
        )

    def forward(self, x: Tensor, state: ClockworkRNNState | None = None) -> tuple[Tensor, ClockworkRNNState]:
        y = self.input(x).transpose(0, 1)  # (T, B, d)
        state = self.state_before(state, y.shape[1])
        clock = state.clock + torch.arange(len(y), device=y.device)[:, None]  # (T, B)
        periods = torch.cat([clock.new_full((size,), period) for size, period in self.modules_of])
        active = clock[:, :, None] % periods == 0  # (T, B, d)
        last = []
        for layer, h in zip(self.layers, state.h, strict=True):
            y = layer(y, h, active)
            last.append(y[-1])
        return y.transpose(0, 1), ClockworkRNNState(torch.stack(last), state.clock + len(y))


class _Layer(nn.Module):
    """One layer over all time steps.

    Args:
        sizes: units of the modules, the fastest first.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        size = sum(sizes)
        self.from_below = nn.Linear(size, size)
        self.from_before = nn.ParameterList(torch.empty(rows, sum(sizes[module:])) for module, rows in enumerate(sizes))
        """Row i of the block upper triangular W_H, starting at the diagonal."""
        with torch.no_grad():
            fan_in_uniform(self.from_below.weight, gain=0.5**0.5)
            self.from_below.bias.zero_()
            for row in self.from_before:
                fan_in_uniform(row, gain=0.5**0.5)

    def forward(self, x: Tensor, h: Tensor, active: Tensor) -> Tensor:
        """Return the (T, B, d) hidden vectors of all steps."""
        size = h.shape[-1]
        weight = torch.cat([F.pad(row, (size - row.shape[1], 0)) for row in self.from_before])
        outputs = []
        for z, ticks in zip(self.from_below(x).unbind(), active.unbind(), strict=True):
            h = torch.where(ticks, (z + F.linear(h, weight)).tanh(), h)
            outputs.append(h)
        return torch.stack(outputs)
