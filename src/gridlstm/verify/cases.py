"""Random networks with their inputs, each determined by one number.

Shape legend: N dimensions, B batch rows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.cell import LSTM, Cell
from gridlstm.cells import GRU, CoupledLSTM, Highway, LayerNormLSTM, NonLSTM, PeepholeLSTM
from gridlstm.engine.dispatch import ChainName, SweepName
from gridlstm.engine.fused import PointwiseStep
from gridlstm.engine.half_step import half_step_fits
from gridlstm.engine.layer_major import layer_major_fits
from gridlstm.engine.matmul import Product
from gridlstm.grid import Dimension, Grid
from gridlstm.models.stacked_lstm import StackedLSTM
from gridlstm.scan import Masks

Precision = Literal["float64", "float32", "bfloat16"]
"""Here bfloat16 means float32 under autocast."""

LONGEST = {1: 7, 2: 6, 3: 3, 4: 2}
"""Largest number of blocks along each of N dimensions."""


@dataclass(frozen=True)
class Case:
    """Description of a network and its inputs.

    Args:
        seed: seed of this case; it determines all numbers.
        device: device of the sweeps.
        precision: the type of numbers.
        threads: number of PyTorch's threads.
        product: product used for large matrices.
        pointwise: pointwise step used for cells.
        frozen: share of parameters and inputs without gradients.
        twice: run a second backward pass through the same graph.
        poisoned: put a NaN into the first batch row.
        recorded: replay the sweeps' kernels, see ``engine.graphs``.
    """

    seed: int
    device: str
    precision: Precision
    threads: int
    product: Product
    pointwise: PointwiseStep
    frozen: float
    twice: bool
    poisoned: bool
    recorded: bool
    B: int


@dataclass(frozen=True)
class GridCase(Case):
    """A grid.

    Args:
        masked: "keep" for booleans, "mix" for floats, "drop" for floats, "select" for booleans that drop, or several.
        cut: dimension and position of a cut into two pieces, between which the state is carried; None for one piece.
    """

    dimensions: tuple[Dimension, ...]
    priority: tuple[str, ...]
    extents: tuple[int, ...]
    masked: tuple[str, ...]
    cut: tuple[int, int] | None

    def network(self, sweep: SweepName) -> Grid:
        """Build the grid with random parameters in double precision."""
        grid = Grid(self.dimensions, self.priority, sweep)
        _randomize(grid, self.seed)
        return grid

    def sweeps(self) -> list[SweepName]:
        """Return the sweeps that fit."""
        block = Grid(self.dimensions, self.priority).block
        more: list[SweepName] = []
        if layer_major_fits(block):
            more.append("layer-major")
        if half_step_fits(block):
            more.append("half-step")
        return ["auto", "reference", "wavefront", "recompute", *more]

    def sides(self) -> list[tuple[Tensor, Tensor]]:
        """Draw the sides in double precision."""
        generator = torch.Generator().manual_seed(self.seed + 1)

        def draw(n: int, length: int) -> Tensor:
            rest = self.extents[:n] + self.extents[n + 1 :]
            return torch.randn(*rest, self.B, length, dtype=torch.float64, generator=generator)

        sides = [(draw(n, d.size), draw(n, d.cell.memory_size(d.size))) for n, d in enumerate(self.dimensions)]
        if self.poisoned:
            sides[-1][0].view(-1, self.B, self.dimensions[-1].size)[-1, 0, 0] = torch.nan
        return sides

    def masks(self) -> list[Masks] | None:
        """Draw masks of full size, in double precision."""
        if not self.masked:
            return None
        generator = torch.Generator().manual_seed(self.seed + 2)
        places = (*self.extents, self.B)
        masks = []
        for d in self.dimensions:
            memory = d.cell.memory_size(d.size)
            shapes = {"h": (*places, d.size), "m": (*places, memory)}
            h, m = (torch.rand(shape, dtype=torch.float64, generator=generator) for shape in shapes.values())
            drop = torch.rand(shapes["h"], dtype=torch.float64, generator=generator)
            mask = Masks(drop=2 * drop.round() if "drop" in self.masked else None)
            if "select" in self.masked:
                mask = mask._replace(drop=drop < 0.7, scale=drop.new_tensor(1 / 0.7))
            if "mix" in self.masked:  # includes exact 0 and 1
                mask = mask._replace(keep_h=(3 * h - 1).clamp(0, 1), keep_m=(3 * m - 1).clamp(0, 1))
            if "keep" in self.masked:
                mask = mask._replace(keep_h=h < 0.3, keep_m=m < 0.3)
            masks.append(mask)
        return masks


@dataclass(frozen=True)
class StackedCase(Case):
    """A stacked LSTM over T steps."""

    cell: Cell
    size: int
    num_layers: int
    tied: bool
    T: int

    symbols = 5

    def network(self, sweep: ChainName) -> StackedLSTM:
        """Build the network with random parameters in double precision."""
        model = StackedLSTM(self.symbols, self.size, self.num_layers, time=self.cell, tied=self.tied, sweep=sweep)
        _randomize(model, self.seed)
        return model

    def sweeps(self) -> list[ChainName]:
        """Return the algorithms to compare."""
        return ["auto", "reference"]

    def inputs(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Draw symbols (B, T) and the state, in double precision."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        x = torch.randint(self.symbols, (self.B, self.T), generator=generator)
        h, m = (
            torch.randn(self.num_layers, self.B, length, dtype=torch.float64, generator=generator)
            for length in (self.size, self.cell.memory_size(self.size))
        )
        if self.poisoned:
            h[0, 0, 0] = torch.nan
        return x, (h, m)


def draw(seed: int, device: str = "cpu") -> GridCase | StackedCase:
    """Draw a case. A GPU changes only its pointwise step, and half of the cases with one backward pass are recorded."""
    r = random.Random(seed)
    precision: Precision = r.choice(["float64", "float64", "float32", "bfloat16"])
    large = precision != "float64" and r.random() < 0.1  # large enough for other products and several threads
    fast: PointwiseStep = "triton" if device == "cuda" else "fused"
    product: Product = r.choice(get_args(Product)) if large else "native"
    base = Case(
        seed,
        device,
        precision,
        threads=r.choice([1, 2]) if large else 1,
        product=product,
        pointwise=r.choice([fast, fast, "eager"]),
        frozen=r.choice([0.0, 0.0, 0.3]),
        twice=(twice := r.random() < 0.2),
        recorded=device == "cuda" and not twice and seed % 2 == 0,
        # On CPUs with AMX, PyTorch's product in bfloat16 spreads a NaN at the start of a row to the row before.
        poisoned=r.random() < 0.1 and precision != "bfloat16",
        # Weights are packed only for many rows.
        B=r.randint(*((300, 500) if product == "packed" else (12, 40))) if large else r.randint(1, 3),
    )
    if base.poisoned and base.B == 1:
        base = replace(base, B=2)
    if r.random() < 0.2:
        size = r.randint(64, 150) if large else r.choice([1, 2, 3, 5, 16, 17])
        steps = r.randint(1, 9)
        return StackedCase(
            **vars(base),
            cell=_cell(r, precision, size),
            size=size,
            num_layers=r.randint(1, 3),
            tied=r.random() < 0.5,
            T=steps,
        )
    return _grid_case(r, base, large)


def _grid_case(r: random.Random, base: Case, large: bool) -> GridCase:
    N = 2 if large else r.choice([1, 2, 2, 2, 3, 3, 4])
    extents = tuple(r.randint(1, 3 if large else LONGEST[N]) for _ in range(N))
    untied = r.choice([(), (), (N - 1,), tuple(n for n in range(N) if r.random() < 0.4)])
    alike = r.random() < 0.4  # needed for shared weights and half-steps
    size = r.randint(48, 130) if large else r.choice([1, 2, 3, 5, 16, 17])
    cell, dimensions = _cell(r, base.precision, size), list[Dimension]()
    for n in range(N):
        d = Dimension(
            f"d{n}",
            cell,
            size,
            untied_extent=extents[n] if n in untied else None,
            tied=bool(untied) and r.random() < 0.3,
            reverse=r.random() < 0.3,
        )
        if not alike:
            other = size if large else r.choice([1, 2, 3, 5, 16, 17])
            d = replace(d, cell=_cell(r, base.precision, other), size=other)
        elif n > 0 and r.random() < 0.3:
            d = replace(d, shares="d0", tied=dimensions[0].tied)
        dimensions.append(d)
    names = [d.name for d in dimensions]
    priority = tuple(r.sample(names, r.randint(0, N))) if r.random() < 0.5 else ()
    free = [n for n in range(N) if n not in untied and extents[n] > 1]
    cut_at = r.choice(free) if free and r.random() < 0.3 else None
    return GridCase(
        **vars(base),
        dimensions=tuple(dimensions),
        priority=priority,
        extents=extents,
        masked=tuple(kind for kind in ("keep", "mix", "drop", "select") if r.random() < 0.2),
        cut=None if cut_at is None else (cut_at, r.randint(1, extents[cut_at] - 1)),
    )


def _cell(r: random.Random, precision: Precision, size: int) -> Cell:
    output: Literal["paper", "standard"] = r.choice(["paper", "standard"])
    bias, constant = r.random() < 0.5, r.choice([0.0, 0.1, 1.5])
    activations: Sequence[object] = ["identity", "tanh", "sigmoid", F.silu]
    if precision == "float64":  # in lower precision, rounding may cross the kink of relu
        activations = [*activations, "relu"]
    cells: list[Cell] = [
        LSTM(output, bias, constant),
        LSTM(output, bias, constant),
        PeepholeLSTM(output, bias, constant, peepholes=r.choice(["ufo", "uf", "uo", "fo", "u", "f", "o"])),
        CoupledLSTM(output, bias, constant),
        GRU(bias),
        NonLSTM(r.choice(activations), bias),  # type: ignore[arg-type]
        Highway(r.choice(activations)),  # type: ignore[arg-type]
    ]
    if size > 2:  # normalizing two nearly equal numbers amplifies rounding without limit
        cells += [LayerNormLSTM(output, epsilon=r.choice([1e-5, 0.1]))] * 2
    return r.choice(cells)


def _randomize(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
