"""The residual block (Vaswani et al. 2017) in pre-norm form (Xiong et al. 2020, arXiv 2002.04745)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from gridlstm.cell import fan_in_uniform


class ResidualBlock(nn.Module):
    """y = x + mixer(norm(x)), then y + W_2 gelu(W_1 norm(y) + b_1) + b_2 with an inner length of 4 d.

    Args:
        mixer: (normalized x (B, T, d), state) -> (B, T, d) and state; the only part that connects time steps.
        hidden_size: d.
        num_layers: number of stacked blocks. Initial outputs of feed-forward parts are scaled by (2 num_layers)^-1/2,
            so that the sum does not grow with depth (Radford et al. 2019).
    """

    def __init__(self, mixer: nn.Module, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(hidden_size)
        self.mixer = mixer
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        for layer, gain in ((self.feed_forward[0], 1.0), (self.feed_forward[2], (2 * num_layers) ** -0.5)):
            reset_linear(cast(nn.Linear, layer), gain)

    def forward(self, x: Tensor, *state: Any) -> tuple[Tensor, Any]:
        mixed, new_state = self.mixer(self.mixer_norm(x), *state)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), new_state


@torch.no_grad()
def reset_linear(layer: nn.Linear, gain: float) -> None:
    """Initialize weights uniformly with variance gain^2 / fan-in, and the bias with 0."""
    fan_in_uniform(layer.weight, gain)
    layer.bias.zero_()
