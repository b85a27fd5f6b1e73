"""A Grid LSTM over time and depth, used like ``torch.nn.LSTM``.

Shape legend: B batch rows, T time steps, L layers, d hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from gridlstm.cell import LSTM, Cell, HiddenMemory, check_cell, check_state_vector
from gridlstm.engine.dispatch import SweepName, needs_plain_ops
from gridlstm.engine.operands import check_factor
from gridlstm.errors import UserError, check_at_least_one, check_true_or_false
from gridlstm.regularizers import Regularizer
from gridlstm.time_depth import TimeDepthGrid


class GridLSTMState(NamedTuple):
    """Outputs of the grid along each dimension. The next call reads only ``time``; ``depth`` may be None there."""

    time: HiddenMemory
    """h and m of every layer after the last step, (L, B, d) each"""
    depth: HiddenMemory | None = None
    """h and m that leave the top layer at every step, (T, B, d) each; h is the output"""

    def detach(self) -> "GridLSTMState":
        """Return the state for the next call without its history, as truncated backpropagation through time needs."""
        return GridLSTMState(HiddenMemory(self.time.h.detach(), self.time.m.detach()))


# Users save a state beside a state_dict, and torch.load rejects unknown classes by default. These hold tensors only.
torch.serialization.add_safe_globals([GridLSTMState, HiddenMemory])
# An exported program, which returns them, is saved with their names.
for kind in (GridLSTMState, HiddenMemory):
    _register_namedtuple(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")


class GridLSTM(nn.Module):
    """Grid LSTM with cells along time and along depth (arXiv 1507.01526, sections 3 and 4).

    Every block computes (h'_n, m'_n) = LSTM([h_time; h_depth], m_n, W_n) for n = time and depth (equation 5). The input
    is projected, without bias, into the h and m that enter at the bottom of depth; the output is the top h.

    Parameters (copies = () when tied, (L,) when not; a bias only for a cell that has one):

    ======================================  ======================  =================================================
    ``input.weight``                        (2d, input_size)        rows (h, m)
    ``grid.transforms.time.weight``         (*copies, 4d, 2d)       rows in gate order (u, f, o, c); columns
                                                                    (h_time, h_depth)
    ``grid.transforms.depth.weight``        (*copies, 4d, 2d)       the same
    ``grid.transforms.{time,depth}.bias``   (*copies, 4d)           (u, f, o, c)
    ``grid.transforms.….vectors.NAME``      (*copies, length)       of cells with peepholes or layer normalization
    ======================================  ======================  =================================================

    ``torch.nn.LSTM`` packs (i, f, g, o), which is (u, f, c, o). Other differences: the state is a ``GridLSTMState``;
    arguments after ``num_layers`` are keyword-only; biases and the output equation belong to the cells (``time``,
    ``depth``); there is no bidirectional or projected form; a padded batch with ``lengths`` replaces packed sequences.

    Args:
        input_size: features per step.
        hidden_size: d.
        num_layers: L.
        batch_first: x and output are (B, T, ...) instead of (T, B, ...). The layout of states does not change.
        time: the cell along time.
        depth: the cell along depth.
        tied, shared, priority, time_regularizers, depth_regularizers, dropout: see
            ``gridlstm.time_depth.TimeDepthGrid``.
        sweep: see ``gridlstm.grid.Grid``.

    Raises:
        UserError: if an option is out of range, or two options are incompatible.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        time: Cell = LSTM(bias=True),
        depth: Cell = LSTM(bias=True),
        tied: bool | Sequence[str] = False,
        shared: bool = False,
        priority: str | None = None,
        sweep: SweepName = "auto",
        time_regularizers: Sequence[Regularizer] = (),
        depth_regularizers: Sequence[Regularizer] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_at_least_one(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_true_or_false(batch_first=batch_first)
        check_cell("time", time)
        check_cell("depth", depth)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.memory_sizes = time.memory_size(hidden_size), depth.memory_size(hidden_size)
        self.input = nn.Linear(input_size, hidden_size + self.memory_sizes[1], bias=False)
        self.grid = TimeDepthGrid(
            hidden_size, num_layers, time, depth, tied, shared, priority, sweep, time_regularizers, depth_regularizers,
            dropout,
        )  # fmt: skip

    def forward(
        self, x: Tensor, state: GridLSTMState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, GridLSTMState]:
        """Run the grid over a sequence, or a padded batch of sequences.

        Args:
            x: (T, B, input_size), with ``batch_first`` (B, T, input_size); or one sequence, (T, input_size).
            state: the state of a previous call; None for zeros. For one sequence its tensors have no batch axis.
            lengths: (B,) integers from 1 to T, on x's device or the CPU: number of valid steps in each row. Padding
                has no effect: the time state comes from the row's last valid step, and outputs after it are 0.

        Returns:
            The top h of every step, shaped as x but with d features, and the state.

        Raises:
            UserError: if the rank, size, data type or device of x, the state or the lengths does not fit. Under
                autocast, x and the weights may have different float types, except float64.
        """
        self._check_input(x)
        batched = x.dim() == 3
        if not batched:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        before = self._incoming(state, x, batched)
        padding = None if lengths is None else self._padding(lengths, x, batched)  # (T, B)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)  # padding may hold any value, including NaN
        bottom = self.input(x).split([self.hidden_size, self.memory_sizes[1]], dim=-1)
        held = None if padding is None else padding[:, None, :, None]
        time, depth = self.grid.over(before, HiddenMemory(*bottom), held)
        if padding is not None:
            depth = HiddenMemory(*(part.masked_fill(padding[..., None], 0) for part in depth))
        if not batched:
            time, depth = (HiddenMemory(h.squeeze(1), m.squeeze(1)) for h, m in (time, depth))
        output = depth.h.transpose(0, 1) if batched and self.batch_first else depth.h
        # Cloned, so that changing the output in place does not change the state.
        return output, GridLSTMState(time, HiddenMemory(depth.h.clone(), depth.m))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, batch_first={self.batch_first}"

    # nn.Module's own __call__ is untyped.
    def __call__(
        self, x: Tensor, state: GridLSTMState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, GridLSTMState]:
        return cast(tuple[Tensor, GridLSTMState], super().__call__(x, state, lengths))

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise UserError(
                f"expected x as a tensor, got {type(x).__name__}. "
                f"Unpack a packed sequence with pad_packed_sequence, and pass the lengths that it returns."
            )
        layout = "(B, T, input_size)" if self.batch_first else "(T, B, input_size)"
        steps = 1 if self.batch_first and x.dim() == 3 else 0
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size or x.shape[steps] == 0:
            raise UserError(
                f"expected x of shape {layout} or (T, input_size) with input_size={self.input_size} and at least one "
                f"step, got {tuple(x.shape)}."
            )
        check_factor("x", x, self.input.weight)

    def _padding(self, lengths: Tensor, x: Tensor, batched: bool) -> Tensor:
        """Return a (T, B) mask that is True at padded steps."""
        T, B = x.shape[:2]
        kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        whole = isinstance(lengths, Tensor) and lengths.dtype in kinds
        fits = whole and batched and tuple(lengths.shape) == (B,)
        fits = fits and lengths.device in (x.device, torch.device("cpu"))  # pad_packed_sequence returns CPU lengths
        # No check for tensors without values, nor while tracing or exporting: the program will take other lengths.
        unseen = fits and (needs_plain_ops(x) or needs_plain_ops(lengths))
        if not fits or not (unseen or ((lengths >= 1) & (lengths.long() <= T)).all()):
            got = f"{lengths!r}"
            if isinstance(lengths, Tensor):
                reach = f" from {lengths.min()} to {lengths.max()}" if whole and lengths.numel() else ""
                got = f"{lengths.dtype} of shape {tuple(lengths.shape)} on {lengths.device}{reach}"
            if not batched:
                raise UserError(
                    "lengths belong to a padded batch, and x is one sequence, of two dimensions. Pass x of three "
                    "dimensions, or no lengths."
                )
            raise UserError(
                f"expected lengths as whole numbers from 1 to T={T}, one for each of the {B} rows of a batch, "
                f"on {' or '.join(dict.fromkeys([str(x.device), 'cpu']))}, got {got}."
            )
        return torch.arange(T, device=x.device)[:, None] >= lengths.to(x.device)

    def _incoming(self, state: GridLSTMState | None, x: Tensor, batched: bool) -> HiddenMemory:
        """Return the (L, B, size) hidden and memory vectors before the first step."""
        B, weight = x.shape[1], self.input.weight
        sizes = (self.hidden_size, self.memory_sizes[0])
        if state is None:
            return HiddenMemory(*(weight.new_zeros(self.num_layers, B, size) for size in sizes))
        # Plain tuples are accepted too: generic code that detaches states returns them.
        if not isinstance(state, tuple) or not (state and isinstance(state[0], tuple) and len(state[0]) == 2):
            raise UserError(
                f"expected the state that a call returned, or GridLSTMState(HiddenMemory(h, m)), got "
                f"{type(state).__name__}. The (h, c) of torch.nn.LSTM covers one dimension only."
            )
        for name, value, size in zip(("h", "m"), state[0], sizes, strict=True):
            expected = (self.num_layers, B, size) if batched else (self.num_layers, size)
            check_state_vector(f"time.{name}", value, expected, weight)
        h, m = state[0]
        return HiddenMemory(h, m) if batched else HiddenMemory(h.unsqueeze(1), m.unsqueeze(1))
