"""The Reencoder, the paper's network for translation (section 4.4): the source is scanned again for every target word.

Shape legend: B pairs, S source places, T target steps, R rows, d hidden size, L grids.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell
from gridlstm.cells import Carry, NonLSTM
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import UserError, check_at_least_one, check_dropout
from gridlstm.grid import Dimension, Grid
from gridlstm.models.base import InputProjection
from gridlstm.models.translation import TranslationModel, check_source
from gridlstm.regularizers import Dropout
from gridlstm.scan import Masks

ReadOut = Literal["end", "gated_max"]


class ReencoderContext(NamedTuple):
    """Projected source, from which a target is predicted."""

    h: Tensor
    """(S, B, d): projected words, read before the first step only"""
    m: Tensor
    """(S, B, memory size)"""
    mask: Tensor
    """(S, B) bool: False on padding"""


class Reencoder(TranslationModel):
    """Grids over source and target, one above the other, that scan the source in opposite directions.

    A grid has three dimensions, of extents (S, T, 1). Along source and target it has ``time`` cells that share one
    weight set (section 3.5). With H = [h_s; h_t; h_k],

        (h'_s, m'_s), (h'_t, m'_t) = LSTM(H, m_s, W), LSTM(H, m_t, W)

    Both read the same H, so one product W H serves both.

    Depth k is a prioritized dimension without memory (sections 3.2 and 3.3): h'_k = V [h'_s; h'_t; h_k]. It carries a
    grid's result to the next grid at every place.

    Inputs enter on two sides of the first grid (section 3.4). Each source word is projected into the h and the m that
    enter along target, at the first step. Each target word is projected into the h and the m that enter along source,
    at the first place. Zeros enter everywhere else.

    Every grid runs forward along target. Along source the last grid runs backward, the one below it forward, and so on:
    with L = 2 the first grid reads the source from its beginning, the second from its end.

    At padding, the vectors along source stay as they are. No other vectors leave a place of padding for another place,
    so padding changes nothing.

    The state is one column of each grid, h_t and m_t at every source place, so that predicting one more word scans the
    source once in each direction: T target words cost O(S T).

    The paper's network has 2 grids of 450 units with dropout 0.5. Each grid has 4 d 3 d + d 3 d weights. With
    ``read_out="end"`` the last grid has no V, because its output along depth is not read.

    Args:
        source_size, target_size: number of symbols.
        hidden_size: d.
        num_layers: L.
        time: the cell along source and target.
        dropout: probability of dropping elements of h where the products inside the blocks read it, and of the y of
            "gated_max".
        read_out: the output y. "end" is [h; m] along source where the last scan ends, at the beginning of the source.
            "gated_max" is the largest value over all source places, max_s (A h'_k + a) . sigma(G h'_k + g), as in
            convolutional networks over source and target (Elbayad et al. 2018, arXiv 1808.03867).
        sweep: see ``gridlstm.grid.Grid``.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        hidden_size: int,
        num_layers: int = 2,
        time: Cell = LSTM(),
        dropout: float = 0.0,
        read_out: ReadOut = "end",
        sweep: SweepName = "auto",
    ) -> None:
        super().__init__()
        check_at_least_one(
            source_size=source_size, target_size=target_size, hidden_size=hidden_size, num_layers=num_layers
        )
        check_cell("time", time)
        check_dropout(dropout)
        if read_out not in ("end", "gated_max"):
            raise UserError(f"read_out must be end or gated_max, got {read_out!r}.")
        self.sizes = hidden_size, time.memory_size(hidden_size)
        self.output_size = sum(self.sizes) if read_out == "end" else hidden_size
        self.source = InputProjection(source_size, sum(self.sizes))
        self.target = InputProjection(target_size, sum(self.sizes))
        noise = (Dropout(dropout),) if dropout else ()
        self.grids = nn.ModuleList()
        for layer in range(num_layers):
            backward = (num_layers - layer) % 2 == 1
            unread = read_out == "end" and layer == num_layers - 1
            dimensions = [
                Dimension("source", time, hidden_size, reverse=backward, regularizers=noise),
                Dimension("target", time, hidden_size, shares="source", regularizers=noise),
                Dimension("depth", Carry() if unread else NonLSTM(), hidden_size, regularizers=noise if layer else ()),
            ]
            self.grids.append(Grid(dimensions, () if unread else ("depth",), sweep))
        self.gated = nn.Linear(hidden_size, 2 * hidden_size) if read_out == "gated_max" else None
        self.dropout = nn.Dropout(dropout)

    def read(self, source: Tensor, source_mask: Tensor) -> ReencoderContext:
        check_source(source, source_mask)
        h, m = self.source(source).transpose(0, 1).split(self.sizes, dim=-1)
        return ReencoderContext(h, m, source_mask.T)

    def start(self, context: ReencoderContext) -> tuple[HiddenMemory, ...]:
        """Return h and m along target of every grid, (S, R, d) each; the first grid reads the source words."""
        words = HiddenMemory(context.h, context.m)
        return (words, *(HiddenMemory(*map(torch.zeros_like, words)) for _ in self.grids[1:]))

    def advance(
        self, context: ReencoderContext, state: tuple[HiddenMemory, ...], inputs: Tensor
    ) -> tuple[Tensor, tuple[HiddenMemory, ...]]:
        words = self.target(inputs).transpose(0, 1)[:, None]  # (T, 1, R, d + memory size)
        (S, R), T = context.mask.shape, len(words)
        padding = ~context.mask[:, None, None, :, None]
        masks = [Masks(padding, padding), Masks(), Masks()]
        along_source = HiddenMemory(*words.split(self.sizes, dim=-1))
        depth = HiddenMemory(words.new_zeros(S, T, R, self.sizes[0]), words.new_zeros(S, T, R, 0))
        after = []
        for grid, before in zip(self.grids, state, strict=True):
            along_target = HiddenMemory(before.h[:, None], before.m[:, None])
            end, along_target, depth = grid([along_source, along_target, depth], (S, T, 1), masks)
            after.append(HiddenMemory(along_target.h[:, 0], along_target.m[:, 0]))
            along_source = HiddenMemory(*map(torch.zeros_like, along_source))
        return self._read_out(end, depth.h, padding), tuple(after)

    def _read_out(self, end: HiddenMemory, depth: Tensor, padding: Tensor) -> Tensor:
        """Return y (R, T, ·), given the last grid's outputs along source (T, 1, R, ·) and along depth (S, T, R, d)."""
        if self.gated is None:
            return torch.cat(end, dim=-1)[:, 0].transpose(0, 1)
        value, gate = self.gated(depth).chunk(2, dim=-1)
        return self.dropout((value * gate.sigmoid()).masked_fill(padding[:, 0], -torch.inf).amax(0).transpose(0, 1))
