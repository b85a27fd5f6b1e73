"""A small causal transformer, today's reference model: attention over a window of past symbols.

Shape legend: B batch rows, T time steps, L layers, d hidden size, n heads, e length of a head, W window, P = W - 1.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.errors import check_at_least_one
from gridlstm.models.base import InputProjection, SequenceModel, check_sizes
from gridlstm.models.residual import ResidualBlock, reset_linear


class TransformerState(NamedTuple):
    """The last P keys and values of every layer, oldest first."""

    keys: Tensor
    """(L, B, n, P, e), before rotation"""
    values: Tensor
    """(L, B, n, P, e)"""
    length: Tensor
    """(1, B) int64: number of valid steps among the P."""


class Transformer(SequenceModel):
    """Pre-norm blocks (``ResidualBlock``) of causal attention over the last W steps, and a final layer norm.

    For each head, step t attends to the steps s with t - W < s <= t (Vaswani et al. 2017, arXiv 1706.03762)::

        q_t, k_s, v_s = R(t) W_q x_t, R(s) W_k x_s, W_v x_s
        y_t = sum_s softmax_s(q_t . k_s / sqrt(e)) v_s

    with biases; W_o combines the heads. R(t) rotates the plane of components i and i + e/2 by the angle
    t 10000^{-2i/e} (rotary positions, Su et al. 2021, arXiv 2104.09864), so scores depend only on t - s. The state
    carries the keys and values of the last W - 1 steps: a sequence in pieces gives the same result as the whole.

    Args:
        input_size: symbols, or features per step.
        hidden_size: d.
        num_layers: L.
        num_heads: n. A head's length e is the smallest even number with n e >= d.
        window: W, the number of steps that one layer sees, including the current one.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, num_heads: int = 4, window: int = 128
    ) -> None:
        super().__init__()
        check_sizes(input_size, hidden_size, num_layers)
        check_at_least_one(num_heads=num_heads, window=window)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_heads, self.window = num_heads, window
        self.head_size = 2 * math.ceil(hidden_size / (2 * num_heads))
        self.input = InputProjection(input_size, hidden_size)
        self.blocks = nn.ModuleList(
            ResidualBlock(_Attention(hidden_size, num_heads, self.head_size, num_layers), hidden_size, num_layers)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def initial_state(self, batch_size: int) -> TransformerState:
        shape = len(self.blocks), batch_size, self.num_heads, self.window - 1, self.head_size
        zeros = self.input.weight.new_zeros
        return TransformerState(zeros(shape), zeros(shape), zeros(1, batch_size, dtype=torch.int64))

    def forward(self, x: Tensor, state: TransformerState | None = None) -> tuple[Tensor, TransformerState]:
        y = self.input(x)  # (B, T, d)
        fresh = state is None
        state = self.state_before(state, len(y))
        past = 0 if fresh else self.window - 1  # without a past, no past keys need a mask
        visible = self._visible(y.shape[1], past, state.length[0])
        rotation = _rotation(past + y.shape[1], self.head_size, y)
        keys, values = [], []
        for block, *cached in zip(self.blocks, state.keys, state.values, strict=True):
            y, (k, v) = block(y, *(c[:, :, c.shape[2] - past :].to(y.dtype) for c in cached), visible, rotation)
            keys.append(self._last(cached[0], k))
            values.append(self._last(cached[1], v))
        length = (state.length + x.shape[1]).clamp(max=self.window - 1)
        return self.norm(y), TransformerState(torch.stack(keys), torch.stack(values), length)

    def _visible(self, steps: int, past: int, length: Tensor) -> Tensor:
        """Return the (B, 1, T, past + T) mask of keys that each query attends to."""
        key = torch.arange(past + steps, device=length.device)
        query = key[past:, None]
        inside = (key <= query) & (key > query - self.window)  # (T, past + T)
        return inside & (key >= past - length[:, None, None, None])

    def _last(self, cached: Tensor, new: Tensor) -> Tensor:
        """Return the last P keys or values; ``new`` already includes ``cached`` if there was a past."""
        joined = new if new.shape[2] >= self.window - 1 else torch.cat([cached.to(new.dtype), new], dim=2)
        return joined[:, :, joined.shape[2] - (self.window - 1) :].to(cached.dtype)


class _Attention(nn.Module):
    def __init__(self, size: int, num_heads: int, head_size: int, num_layers: int) -> None:
        super().__init__()
        self.num_heads, self.head_size = num_heads, head_size
        self.qkv = nn.Linear(size, 3 * num_heads * head_size)
        self.out = nn.Linear(num_heads * head_size, size)
        reset_linear(self.qkv, gain=1.0)
        reset_linear(self.out, gain=(2 * num_layers) ** -0.5)

    def forward(
        self, x: Tensor, past_keys: Tensor, past_values: Tensor, visible: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the output (B, T, d), and all keys and values (B, n, past + T, e)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_size)).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([past_keys.to(k.dtype), k], dim=2), torch.cat([past_values.to(v.dtype), v], dim=2)
        queries = [part[-x.shape[1] :] for part in rotation]
        y = F.scaled_dot_product_attention(_rotate(q, *queries), _rotate(k, *rotation), v, attn_mask=visible)
        return self.out(y.transpose(1, 2).flatten(2)), (k, v)


def _rotation(steps: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (steps, e / 2) of the rotary angles."""
    half = torch.arange(head_size // 2, device=like.device, dtype=torch.float64)
    angle = torch.arange(steps, device=like.device)[:, None] * 10000.0 ** (-2 * half / head_size)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return rotated.to(x.dtype)
