"""Encoder-decoder LSTMs for translation, with and without attention.

Shape legend: B pairs, S source places, T target steps, R rows, d hidden size, L layers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gridlstm.errors import check_at_least_one, check_dropout, check_true_or_false
from gridlstm.models.base import InputProjection
from gridlstm.models.torch_rnn import run_rnn
from gridlstm.models.translation import TranslationModel, check_source


class EncodedSource(NamedTuple):
    """Encoded source, from which a target is predicted."""

    annotations: Tensor
    """(S, B, 2 d): outputs of both directions of the encoder"""
    keys: Tensor
    """(S, B, d): projected annotations, which the attention compares with h"""
    mask: Tensor
    """(S, B) bool: False on padding"""
    ends: Tensor
    """(1, B, 2 d): outputs at each direction's last word"""


class DecoderState(NamedTuple):
    """Hidden and memory vectors of the decoder."""

    h: Tensor
    """(L, R, d)"""
    m: Tensor
    """(L, R, d)"""


class AttentionLSTM(TranslationModel):
    """A bidirectional LSTM reads the source, and an LSTM with attention writes the target (Bahdanau et al. 2015).

    With the annotations a_s, the outputs of both directions at word s, and x_t the projected symbol before step t
    (arXiv 1409.0473, appendix A)::

        e_ts = v . tanh(W h_{t-1} + U a_s)          with h of the top layer
        c_t = sum_s softmax_s(e_ts) a_s
        h_t, m_t = LSTM([x_t; c_t], h_{t-1}, m_{t-1})
        y_t = tanh(C [h_t; c_t; x_t])

    The decoder starts from tanh(V [ends of both directions]). The paper uses GRUs and a maxout read-out.

    Without attention, the decoder sees the source only through that start (Sutskever et al. 2014, arXiv 1409.3215):
    there is no c, and y_t = h_t.

    Args:
        source_size, target_size: number of symbols.
        hidden_size: d, the length of projected symbols, and the size of each encoder direction and of the decoder.
        num_layers: L, the same for the encoder and the decoder.
        dropout: probability of dropping elements of projected symbols, of annotations and of y, and between layers.
        attention: see above.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        attention: bool = True,
    ) -> None:
        super().__init__()
        check_at_least_one(
            source_size=source_size, target_size=target_size, hidden_size=hidden_size, num_layers=num_layers
        )
        check_dropout(dropout)
        check_true_or_false(attention=attention)
        d, between = hidden_size, dropout if num_layers > 1 else 0.0
        self.output_size = d
        self.dropout = dropout
        self.source, self.target = InputProjection(source_size, d), InputProjection(target_size, d)
        self.encoder = nn.LSTM(d, d, num_layers, dropout=between, bidirectional=True)
        self.first = nn.Linear(2 * d, 2 * num_layers * d)
        self.decoder = nn.LSTM(3 * d if attention else d, d, num_layers, dropout=between)
        self.attention = _Attention(d) if attention else None
        self.read_out = nn.Linear(4 * d, d) if attention else None

    def read(self, source: Tensor, source_mask: Tensor) -> EncodedSource:
        check_source(source, source_mask)
        words = self._drop(self.source(source)).transpose(0, 1)
        packed = pack_padded_sequence(words, source_mask.sum(1).cpu(), enforce_sorted=False)
        outputs, (ends, _) = run_rnn(self.encoder, packed)
        annotations = self._drop(pad_packed_sequence(outputs, total_length=len(words))[0])
        keys = self.attention.key(annotations) if self.attention else annotations[..., :0]
        return EncodedSource(annotations, keys, source_mask.T, torch.cat([*ends[-2:]], dim=-1)[None])

    def start(self, context: EncodedSource) -> DecoderState:
        first = self.first(context.ends[0]).tanh()
        return DecoderState(*first.unflatten(-1, (2, -1, self.output_size)).permute(1, 2, 0, 3))

    def advance(self, context: EncodedSource, state: DecoderState, inputs: Tensor) -> tuple[Tensor, DecoderState]:
        words = self._drop(self.target(inputs)).transpose(0, 1)  # (T, R, d)
        state = DecoderState(*(x.contiguous() for x in state))
        if self.attention is None or self.read_out is None:
            h, (*end,) = run_rnn(self.decoder, words, tuple(state))
            return self._drop(h).transpose(0, 1), DecoderState(*end)
        outputs = []
        for x in words.split(1):
            c, _ = self.attention(context, state.h[-1])
            h, (*end,) = run_rnn(self.decoder, torch.cat([x, c[None]], dim=-1), tuple(state))
            state = DecoderState(*end)
            outputs.append(torch.cat([h[0], c, x[0]], dim=-1))
        return self._drop(self.read_out(torch.stack(outputs, dim=1)).tanh()), state

    def alignment(self, source: Tensor, source_mask: Tensor, inputs: Tensor) -> Tensor | None:
        if self.attention is None:
            return None
        context = self.read(source, source_mask)
        state, weights = self.start(context), []
        for symbols in inputs.unbind(1):
            weights.append(self.attention(context, state.h[-1])[1].T)
            _, state = self.step(context, state, symbols)
        return torch.stack(weights, dim=1)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class _Attention(nn.Module):
    """Additive attention over the annotations."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.key = nn.Linear(2 * size, size)
        self.query = nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, context: EncodedSource, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return c (R, 2 d) and the weights (S, R) of h (R, d)."""
        scores = self.score((context.keys + self.query(h)).tanh())[..., 0]
        weights = scores.masked_fill(~context.mask, -torch.inf).softmax(0)
        return torch.einsum("sr,srd->rd", weights, context.annotations), weights
