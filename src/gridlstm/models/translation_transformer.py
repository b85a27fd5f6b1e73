"""A small encoder-decoder transformer for translation.

Shape legend: B pairs, S source places, T target steps, R rows, d hidden size, L layers, n heads, e length of a head,
P earlier target steps.
"""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.errors import check_at_least_one, check_dropout
from gridlstm.models.base import InputProjection
from gridlstm.models.residual import reset_linear
from gridlstm.models.translation import TranslationModel, check_source


class TransformerContext(NamedTuple):
    """Keys and values of the source for every decoder layer."""

    keys: Tensor
    """(L, B, n, S, e)"""
    values: Tensor
    """(L, B, n, S, e)"""
    mask: Tensor
    """(1, B, S) bool: False on padding"""


class DecoderCache(NamedTuple):
    """Keys and values of the target so far, of every decoder layer."""

    keys: Tensor
    """(L, R, n, P, e)"""
    values: Tensor
    """(L, R, n, P, e)"""


class TranslationTransformer(TranslationModel):
    """Encoder and decoder of L pre-norm layers each (Vaswani et al. 2017, arXiv 1706.03762; Xiong et al. 2020).

    An encoder layer is x + attention(norm(x)), then x + feed-forward(norm(x)) with an inner length of 4 d and ReLUs;
    a decoder layer attends to earlier target steps, then to the encoder's outputs. Sines of the positions are added to
    projected symbols; both stacks end in a norm.

    The state holds the keys and values of earlier target steps, so a step costs one column of the attention.

    Args:
        source_size, target_size: number of symbols.
        hidden_size: d.
        num_layers: L, of the encoder and of the decoder.
        num_heads: n. A head's length e is the smallest with n e >= d.
        dropout: probability of dropping elements of the layers' inputs and of each part's output.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        hidden_size: int,
        num_layers: int = 3,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least_one(
            source_size=source_size, target_size=target_size, hidden_size=hidden_size, num_layers=num_layers
        )
        check_at_least_one(num_heads=num_heads)
        check_dropout(dropout)
        self.output_size = hidden_size
        self.source, self.target = (InputProjection(size, hidden_size) for size in (source_size, target_size))
        self.drop = nn.Dropout(dropout)
        self.encoder, self.decoder = (
            nn.ModuleList(_Layer(hidden_size, num_heads, num_layers, dropout, reads) for _ in range(num_layers))
            for reads in (False, True)
        )
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)

    def read(self, source: Tensor, source_mask: Tensor) -> TransformerContext:
        check_source(source, source_mask)
        y, visible = self._embed(self.source, source, 0), source_mask[:, None, None]
        for layer in _layers(self.encoder):
            y = y + self.drop(layer.attend(y, *layer.attention.keys_and_values(layer.attention_norm(y)), visible))
            y = y + self.drop(layer.feed_forward(y))
        y = self.encoder_norm(y)
        found = [layer.source_attention.keys_and_values(y) for layer in _layers(self.decoder)]
        keys, values = map(torch.stack, zip(*found, strict=True))
        return TransformerContext(keys, values, source_mask[None])

    def start(self, context: TransformerContext) -> DecoderCache:
        return DecoderCache(context.keys[:, :, :, :0], context.values[:, :, :, :0])

    def advance(self, context: TransformerContext, state: DecoderCache, inputs: Tensor) -> tuple[Tensor, DecoderCache]:
        (past, steps), visible = (state.keys.shape[3], inputs.shape[1]), context.mask[0, :, None, None]
        earlier = torch.ones(steps, past + steps, dtype=torch.bool, device=inputs.device).tril(past)
        y, caches = self._embed(self.target, inputs, past), []
        for layer, *old, keys, values in zip(_layers(self.decoder), *state, context.keys, context.values, strict=True):
            new = layer.attention.keys_and_values(layer.attention_norm(y))
            k, v = (torch.cat([before.to(x.dtype), x], dim=2) for before, x in zip(old, new, strict=True))
            y = y + self.drop(layer.attend(y, k, v, earlier))
            y = y + self.drop(layer.attend_to_source(y, keys, values, visible))
            y = y + self.drop(layer.feed_forward(y))
            caches.append((k, v))
        return self.decoder_norm(y), DecoderCache(*map(torch.stack, zip(*caches, strict=True)))

    def _embed(self, projection: nn.Module, symbols: Tensor, past: int) -> Tensor:
        """Return projected symbols (R, T, d) plus the sines of their positions, which start at ``past``."""
        words = projection(symbols)
        return self.drop(words + _sines(past, symbols.shape[1], words))


class _Attention(nn.Module):
    """softmax(q k / sqrt(e)) v for each head, and a product that combines the heads."""

    def __init__(self, size: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * math.ceil(size / num_heads)
        self.q, self.kv, self.out = nn.Linear(size, inner), nn.Linear(size, 2 * inner), nn.Linear(inner, size)
        reset_linear(self.q, gain=1.0)
        reset_linear(self.kv, gain=1.0)
        reset_linear(self.out, gain=(2 * num_layers) ** -0.5)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (R, n, T, e) of x (R, T, d)."""
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, keys.to(q.dtype), values.to(q.dtype), attn_mask=visible)
        return self.out(y.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    """The parts of a layer, each with its norm. The caller adds their outputs to x.

    Args:
        reads: true for a layer that attends to the source as well.
    """

    def __init__(self, size: int, num_heads: int, num_layers: int, dropout: float, reads: bool) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(size), _Attention(size, num_heads, num_layers)
        if reads:
            self.source_norm, self.source_attention = nn.LayerNorm(size), _Attention(size, num_heads, num_layers)
        inner, outer = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)
        reset_linear(inner, gain=2.0**0.5)
        reset_linear(outer, gain=(2 * num_layers) ** -0.5)
        self.feed_forward = nn.Sequential(nn.LayerNorm(size), inner, nn.ReLU(), nn.Dropout(dropout), outer)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        return self.attention(self.attention_norm(x), keys, values, visible)

    def attend_to_source(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        return self.source_attention(self.source_norm(x), keys, values, visible)


def _layers(stack: nn.ModuleList) -> list[_Layer]:
    return [cast(_Layer, layer) for layer in stack]


def _sines(first: int, steps: int, like: Tensor) -> Tensor:
    """Return (steps, d): sines and cosines of the positions from ``first`` on, in the type of ``like`` (…, d)."""
    half = torch.arange((like.shape[-1] + 1) // 2, device=like.device, dtype=torch.float64)
    positions = torch.arange(first, first + steps, device=like.device)[:, None]
    angle = positions * 10000.0 ** (-2 * half / like.shape[-1])
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[:, : like.shape[-1]].to(like.dtype)
