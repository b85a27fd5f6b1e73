"""The multidimensional LSTM (Graves et al. 2007, arXiv 0705.2011), equation 4 of the Grid LSTM paper.

Shape legend: N dimensions, B batch rows, d hidden size, G = (N + 3) d pre-activations of a block. Packed gate order:
(u, f_1, ..., f_N, o, c). For N = 1 this is the LSTM's order.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby, product
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import LSTM, OUTPUTS, HiddenMemory, fan_in_uniform
from gridlstm.configured import Configured
from gridlstm.engine.dispatch import needs_plain_ops, pairs
from gridlstm.engine.operands import check_factor
from gridlstm.errors import UserError, check_at_least_one

Place = tuple[int, ...]


def md_block(z: Tensor, memories: Sequence[Tensor], output: str) -> HiddenMemory:
    """Return m' = f_1 . m_1 + ... + f_N . m_N + u . c and h' as in ``LSTM``; every dimension gets the same two.

    Args:
        z: (..., G).
        memories: incoming memory of each dimension, (..., d) each.
        output: "paper" or "standard".
    """
    u, *forget, o, c = z.chunk(len(memories) + 3, dim=-1)
    m = u.sigmoid() * c.tanh()
    for f, incoming in zip(forget, memories, strict=True):
        m = m + f.sigmoid() * incoming
    return HiddenMemory(OUTPUTS[output](o.sigmoid(), m), m)


def md_scan(
    z: Tensor, weight: Tensor, sides: Sequence[HiddenMemory], extents: Sequence[int], output: str
) -> HiddenMemory:
    """Compute the recurrence in plain loops: the specification.

    Args:
        z: added to W [h_1; ...; h_N] in each block: (*extents, B, G), or (G,) for the same z in all blocks.
        weight: W, (G, N d).
        sides: inputs along each dimension, h and m (*extents without that one, B, d).
        extents: number of blocks along each dimension.
        output: "paper" or "standard".

    Returns:
        h and m of every block, (*extents, B, d).
    """
    results: dict[Place, HiddenMemory] = {}
    z = z.to(sides[0].h.dtype)  # autocast changes only the type of the products
    for place in product(*map(range, extents)):
        incoming = [
            results[_before(place, n)] if place[n] > 0 else HiddenMemory(*(x[_without(place, n)] for x in side))
            for n, side in enumerate(sides)
        ]
        product_here = F.linear(torch.cat([h for h, _ in incoming], dim=-1), weight).to(z.dtype)
        here = product_here + (z if z.dim() == 1 else z[place])
        results[place] = md_block(here, [m for _, m in incoming], output)
    h, m = (torch.stack(x).unflatten(0, tuple(extents)) for x in zip(*results.values(), strict=True))
    return HiddenMemory(h, m)


def md_wavefront(
    z: Tensor, weight: Tensor, sides: Sequence[HiddenMemory], extents: Sequence[int], output: str
) -> HiddenMemory:
    """Compute ``md_scan`` by diagonals: blocks with the same sum of coordinates do not depend on each other."""
    N = len(extents)
    flat = [HiddenMemory(*(x.flatten(0, N - 2) if N > 1 else x[None] for x in side)) for side in sides]
    everywhere = (z if z.dim() == 1 else z.flatten(0, N - 1)).to(flat[0].h.dtype)
    diagonals, order = _plan(tuple(extents), weight.device)
    before = HiddenMemory(*(x[:0] for x in flat[0]))
    results = []
    for diagonal in diagonals:
        h, m = (
            [torch.cat([old, side[k][rows]])[at] for side, rows, at in zip(flat, *diagonal[1:], strict=True)]
            for k, old in enumerate(before)
        )
        here = everywhere if everywhere.dim() == 1 else everywhere[diagonal.blocks]
        before = md_block(F.linear(torch.cat(h, dim=-1), weight).to(here.dtype) + here, m, output)
        results.append(before)
    h_all, m_all = (torch.cat(x)[order].unflatten(0, tuple(extents)) for x in zip(*results, strict=True))
    return HiddenMemory(h_all, m_all)


class _Diagonal(NamedTuple):
    blocks: Tensor
    """(r,) row-major numbers of the blocks."""
    entries: list[Tensor]
    """For each dimension, the rows of its side that enter here."""
    sources: list[Tensor]
    """For each dimension, (r,) indices of each block's incoming vectors in [last diagonal; entries]."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # training may later use cached tensors that an evaluation made
def _plan(extents: tuple[int, ...], device: torch.device) -> tuple[list[_Diagonal], Tensor]:
    """Return all diagonals, and the index of each block in their concatenation."""
    places = list(product(*map(range, extents)))
    number = {place: k for k, place in enumerate(places)}
    by_sum = sorted(places, key=sum)
    sides = [
        {place: k for k, place in enumerate(product(*map(range, _without(extents, n))))} for n in range(len(extents))
    ]
    last: list[Place] = []
    diagonals = []

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    for _, group in groupby(by_sum, key=sum):
        here = list(group)
        entries, sources = [], []
        for n in range(len(extents)):
            entering = [place for place in here if place[n] == 0]
            row = {place: k for k, place in enumerate(last)}
            row |= {_before(place, n): len(last) + k for k, place in enumerate(entering)}
            entries.append(tensor([sides[n][_without(place, n)] for place in entering]))
            sources.append(tensor([row[_before(place, n)] for place in here]))
        diagonals.append(_Diagonal(tensor([number[place] for place in here]), entries, sources))
        last = here
    return diagonals, torch.argsort(tensor([number[place] for place in by_sum]))


def _before(place: Place, n: int) -> Place:
    return (*place[:n], place[n] - 1, *place[n + 1 :])


def _without(place: Place, n: int) -> Place:
    return (*place[:n], *place[n + 1 :])


SWEEPS: dict[str, Callable[..., HiddenMemory]] = {"auto": md_wavefront, "reference": md_scan}


class MDLSTM(Configured):
    """One layer of multidimensional LSTM blocks over a grid of 1 to 3 dimensions.

    In every block, H = [x; h_1; ...; h_N] with h_n from the preceding neighbour along dimension n;
    u, f_1, ..., f_N, o = sigma(W H), c = tanh(W_c H), m' = sum_n f_n . m_n + u . c. All dimensions share one h' and m'.

    The memories are summed, so m' may grow with the number of paths through the grid, (n_1 + n_2)! / (n_1! n_2!) in
    two dimensions. The Grid LSTM paper names this as its weakness (section 2.3). Graves et al. add peepholes.

    Args:
        input_size: length of x; 0 for a layer that reads only its sides.
        hidden_size: d.
        dimensions: N.
        cell: output equation, biases and initial values of each gate. Every forget gate has the forget bias.
        reverse: for each dimension, true to run from the largest coordinate to the smallest; () for none. 2^N such
            layers together see a whole image.
        sweep: "auto" for diagonals, "reference" for plain loops; both give the same numbers.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dimensions: int,
        cell: LSTM = LSTM(),
        reverse: Sequence[bool] = (),
        sweep: Literal["auto", "reference"] = "auto",
    ) -> None:
        super().__init__()
        if dimensions not in (1, 2, 3):
            raise UserError(f"dimensions must be 1, 2 or 3, got {dimensions!r}.")
        check_at_least_one(hidden_size=hidden_size)
        if input_size != 0:  # 0: the layer reads only its sides
            check_at_least_one(input_size=input_size)
        if type(cell) is not LSTM:
            raise UserError(
                f"cell must be the LSTM of a multidimensional LSTM, got {type(cell).__name__}. "
                f"Use transform@model.cell=lstm or lstm_standard."
            )
        if reverse and len(reverse) != dimensions:
            raise UserError(f"reverse must have {dimensions} values, one per dimension, got {len(reverse)}.")
        if sweep not in SWEEPS:
            raise UserError(f"sweep must be auto or reference, got {sweep!r}.")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.cell = cell
        self.sweep = sweep
        self.reversed = [n for n, yes in enumerate(reverse) if yes]
        self.N = dimensions
        G = (dimensions + 3) * hidden_size
        self.weight = nn.Parameter(torch.empty(G, input_size + dimensions * hidden_size))
        self.bias = nn.Parameter(torch.empty(G)) if cell.bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        fan_in_uniform(self.weight, self.cell.gain)
        if self.bias is not None:
            self.bias.copy_(self._gate_biases())

    def configured(self) -> dict[str, Any]:
        return {} if self.cell.bias else {"constant forget bias": self.cell.forget_bias}

    def _gate_biases(self) -> Tensor:
        """Return (G,) with the forget bias for every forget gate and 0 for the others."""
        numbers = [0.0, *[self.cell.forget_bias] * self.N, 0.0, 0.0]
        return torch.cat([self.weight.new_full((self.hidden_size,), x) for x in numbers])

    def forward(self, x: Tensor, sides: Sequence[HiddenMemory] | None = None) -> HiddenMemory:
        """Return h and m of every block, (*extents, B, d).

        Args:
            x: (*extents, B, input_size).
            sides: inputs of the grid along each dimension, h and m (*extents without that one, B, d); None for zeros.
                They use the coordinates of the data, also for reversed dimensions.

        Raises:
            UserError: if shapes, data types or devices do not fit. Under autocast, x may have another float type than
                the weights, except float64.
        """
        *extents, B, length = x.shape if x.dim() == self.N + 2 else (0, 0, -1)
        if length != self.input_size or min(extents) < 1:
            raise UserError(
                f"expected x with {self.N} extents of at least 1, batch and {self.input_size} features, "
                f"got shape {tuple(x.shape)}."
            )
        shapes = [(*_without(tuple(extents), n), B, self.hidden_size) for n in range(self.N)]
        if sides is None:
            sides = [HiddenMemory(self.weight.new_zeros(shape), self.weight.new_zeros(shape)) for shape in shapes]
        if len(sides) != self.N:
            raise UserError(f"expected {self.N} sides, one per dimension, got {len(sides)}.")
        for n, (side, shape) in enumerate(zip(pairs(sides), shapes, strict=True)):
            if any(tuple(each.shape) != shape for each in side):
                raise UserError(f"side {n}: expected h and m of shape {shape}, got {[tuple(e.shape) for e in side]}.")
            for each in side:
                check_factor(f"side {n}", each, self.weight)
        if self.input_size:  # otherwise x is empty
            check_factor("x", x, self.weight)
        if self.reversed:
            x, sides = x.flip(self.reversed), self._flip_sides(sides)
        from_input, recurrent = self.weight.split([self.input_size, self.N * self.hidden_size], dim=-1)
        bias = self._gate_biases() if self.bias is None else self.bias
        z = F.linear(x, from_input, bias) if self.input_size else bias
        sweep = md_scan if needs_plain_ops(z) else SWEEPS[self.sweep]
        h, m = sweep(z, recurrent, sides, extents, self.cell.output)
        return HiddenMemory(h.flip(self.reversed), m.flip(self.reversed)) if self.reversed else HiddenMemory(h, m)

    # nn.Module's own __call__ is untyped.
    def __call__(self, x: Tensor, sides: Sequence[HiddenMemory] | None = None) -> HiddenMemory:
        return cast(HiddenMemory, super().__call__(x, sides))

    def _flip_sides(self, sides: Sequence[HiddenMemory]) -> list[HiddenMemory]:
        """Mirror the coordinates of reversed dimensions. A side has no axis for its own dimension."""
        axes = [[n - (n > own) for n in self.reversed if n != own] for own in range(self.N)]
        return [HiddenMemory(h.flip(at), m.flip(at)) for (h, m), at in zip(sides, axes, strict=True)]
