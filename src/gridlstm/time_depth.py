"""The 2-LSTM: a grid of time and depth, the network of the paper's sections 4.1 to 4.3.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gridlstm.cell import Cell, HiddenMemory
from gridlstm.engine.dispatch import SweepName
from gridlstm.errors import UserError, check_dropout, check_true_or_false
from gridlstm.grid import Dimension, Grid
from gridlstm.regularizers import Regularizer
from gridlstm.scan import Masks

_NAMES = ("time", "depth")


class TimeDepthGrid(Grid):
    """Grid of a cell along time and one along depth.

    ``tied=True`` is the paper's "tied 2-LSTM": one weight set for the time transform and one for the depth transform,
    both shared by all layers. Other choices of section 3.5: ``tied=False``, separate weights for every layer;
    ``tied=["depth"]``, only the depth transform shared by all layers; ``shared=True``, one set for time and depth too.

    Args:
        hidden_size: d, the same along both dimensions.
        num_layers: L, the blocks along depth.
        time: the cell along time.
        depth: the cell along depth.
        tied: share weights along depth: true for both transforms, false for none, or a list that names one.
        shared: both transforms use one weight set.
        priority: the dimension that sees the other's new hidden vector (section 3.2): "depth", "time" or None.
            The paper draws depth prioritized (figure 1) but does not say what its experiments used.
        sweep: see ``gridlstm.grid.Grid``.
        time_regularizers: noise along time, such as zoneout or variational dropout.
        depth_regularizers: noise along depth, such as dropout.
        dropout: probability of dropping elements of a layer's h along depth for the next layer and for the output.
            ``Dropout`` as a regularizer also acts on the projected input, but not on the output.

    Raises:
        UserError: if an option is out of range, or two options are incompatible.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        time: Cell,
        depth: Cell,
        tied: bool | Sequence[str],
        shared: bool,
        priority: str | None,
        sweep: SweepName,
        time_regularizers: Sequence[Regularizer],
        depth_regularizers: Sequence[Regularizer],
        dropout: float,
    ) -> None:
        if priority not in (None, *_NAMES):
            raise UserError(f"priority must be depth, time or null, got {priority!r}.")
        check_dropout(dropout)
        check_true_or_false(shared=shared)
        for name, regularizers in (("time", time_regularizers), ("depth", depth_regularizers)):
            if isinstance(regularizers, str) or not isinstance(regularizers, Sequence):
                raise UserError(
                    f"{name}_regularizers must be a list of regularizers, such as [Dropout(0.1)], got {regularizers!r}."
                )
        if shared and time != depth:
            raise UserError(f"shared=true: expected the same cell along time and depth, got {time} and {depth}.")
        if isinstance(tied, str) or not isinstance(tied, bool | Sequence):
            raise UserError(f"tied must be true, false or a list of time and depth, got {tied!r}.")
        names = list(_NAMES if tied else ()) if isinstance(tied, bool) else list(tied)
        for name in names:
            if name not in _NAMES:
                raise UserError(f"tied must be true, false or a list of time and depth, got {name!r} in it.")
        tied_names = set(names)
        if shared and len(tied_names) == 1:
            raise UserError("shared=true has one weight set for time and depth. Expected tied=true or tied=false.")
        along_time = Dimension(
            "time", time, hidden_size, tied="time" in tied_names, regularizers=tuple(time_regularizers)
        )
        along_depth = Dimension(
            "depth",
            depth,
            hidden_size,
            untied_extent=None if len(tied_names) == 2 else num_layers,
            tied="depth" in tied_names,
            shares="time" if shared else None,
            regularizers=tuple(depth_regularizers),
        )
        super().__init__([along_time, along_depth], priority=() if priority is None else (priority,), sweep=sweep)
        self.num_layers = num_layers
        self.dropout = dropout

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"

    def over(
        self, before: HiddenMemory, bottom: HiddenMemory, held: Tensor | None = None
    ) -> tuple[HiddenMemory, HiddenMemory]:
        """Run over a sequence.

        Args:
            before: (L, B, ·) vectors of every layer before the first step.
            bottom: (T, B, ·) vectors that enter the first layer.
            held: (T, 1, B, 1), True at steps that must not change the state along time.

        Returns:
            The vectors of every layer after the last step, and those that leave the top layer at every step.
        """
        masks = None if held is None else [Masks(held, held), Masks()]
        if self.dropout and self.training:
            # Acts on the input from below of each layer except the first.
            # Drawn in the weights' type: under autocast h has another, in which 1 / (1 - dropout) would be rounded.
            like = next(self.parameters())
            drop = like.new_ones(bottom.h.shape[0], self.num_layers, *bottom.h.shape[1:])
            drop = torch.cat([drop[:, :1], F.dropout(drop[:, 1:], self.dropout)], dim=1)
            masks = [masks[0] if masks else Masks(), Masks(drop=drop)]
        time, depth = self([before, bottom], (bottom.h.shape[0], self.num_layers), masks)
        return time, HiddenMemory(F.dropout(depth.h, self.dropout, self.training), depth.m)
