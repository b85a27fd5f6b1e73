"""Buffers of a sweep, which blocks read and write, and the layout of packed dimensions.

Shape legend: B batch rows, d_n size of dimension n, D = d_1 + ... + d_N, C blocks of the grid, r blocks of one
diagonal, P packed gates that one stage's product computes, G >= P gates of all dimensions of the stage. Buffers are
(rows, B, ...), with rows as in ``plan.Plan``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gridlstm.engine.dropout import Factors
from gridlstm.engine.memory import empty
from gridlstm.engine.plan import Order, Plan, Runs, plan
from gridlstm.engine.pointwise import Inputs
from gridlstm.scan import Block, Masks, columns_of


def empty_stages(widths: Sequence[int], rows: int, B: int, like: Tensor) -> list[Tensor]:
    """Return the views of ``stages_of`` on a new storage."""
    return stages_of(empty(rows * B * sum(widths), like=like), widths, rows, B)


def stages_of(storage: Tensor, widths: Sequence[int], rows: int, B: int) -> list[Tensor]:
    """Return (rows, B, width) views for each stage of one flat storage, the last stage first: see ``half_step``."""
    pieces = storage.split([rows * B * width for width in reversed(widths)])
    return [piece.view(rows, B, width) for piece, width in zip(reversed(pieces), widths, strict=True)]


def by_copy(weight: Tensor) -> Tensor:
    """Return a weight (extents of untied axes, G, D) as (copies, G, D). G may be 0, as for a cell without gates."""
    return weight.flatten(0, -3) if weight.dim() > 2 else weight[None]


LARGE = 1 << 22
"""Largest number of weights of a matrix that fits into a core's caches."""


class Layout:
    """Positions of the dimensions in the packed buffers."""

    def __init__(
        self,
        block: Block,
        extents: tuple[int, ...],
        B: int,
        device: torch.device,
        order: Order,
        product_dtype: torch.dtype | None,
        joint: bool = False,
    ) -> None:
        """
        Args:
            joint: True if one step computes all dimensions with the same pre-activations, ``block.same``.
        """
        self.block = block
        self.extents = extents
        self.product_dtype = product_dtype  # type of products; None for the tensors' own
        self.B = B
        self.D = sum(block.sizes)
        self.columns = columns_of(block)
        self.stage_of = {n: k for k, stage in enumerate(block.stages) for n in stage}
        pace = tuple(self.stage_of[n] + 1 for n in range(len(extents))) if order == "half-step" else None
        self.plan: Plan = plan(extents, block.untied, device, order, pace)
        # Half-steps compute stages of two diagonals at once; other orders, one diagonal or layer at a time.
        self.at_once = self.plan.blocks if order == "half-step" else self.plan.largest
        # Other orders do not form one product for all dimensions of a stage.
        self.same = dict(block.same) if order == "diagonal" else {}
        self.joint = joint and bool(self.same)
        self.owners = [tuple(n for n in stage if n not in self.same) for stage in block.stages]
        self.readers = [tuple(n for n in stage if n in self.same) for stage in block.stages]
        # A dimension with its own step reads the pre-activations of its owner before the owner's step overwrites them.
        parts = zip(*((self.owners, self.readers) if self.joint else (self.readers, self.owners)), strict=True)
        self.stages = [(*first, *later) for first, later in parts]
        self.gates: dict[int, slice] = {}  # each dimension's columns within its stage
        self.products: list[int] = []  # P of each stage
        self.num_gates: list[int] = []  # G of each stage
        for owners, readers in zip(self.owners, self.readers, strict=True):
            G = P = 0
            for n in (*owners, *readers):
                if self.joint and n in self.same:
                    self.gates[n] = self.gates[self.same[n]]
                    continue
                rows = block.cells[n].num_gates * block.sizes[n]
                self.gates[n] = slice(G, G + rows)
                G += rows
                P += rows * (n in owners)
            self.products.append(P)
            self.num_gates.append(G)

    @property
    def largest_product(self) -> float:
        """Arithmetic of the largest matrix product, the gradient of a copy of a stage's weights."""
        return 2 * self.B * self.plan.blocks * self.D * max(self.products) / len(self.plan.by_copy)

    def pack_weights(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return each stage's weights as (copies, P, D)."""
        packed = [torch.cat([weights[n] for n in owners], dim=-2) for owners in self.owners]
        return [by_copy(weight).to(self.product_dtype or weight.dtype) for weight in packed]

    def pack_weights_transposed(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return each stage's weights as contiguous (copies, D, P), which makes products with few rows faster."""
        packed = []
        for owners, P in zip(self.owners, self.products, strict=True):
            weight = weights[owners[0]].new_empty(*weights[owners[0]].shape[:-2], self.D, P)
            for n in owners:
                transposed = weights[n].mT
                # PyTorch transposes by blocks, which is twice as fast for matrices beyond the caches, only into
                # contiguous memory.
                large = transposed.dim() == 2 and transposed.numel() > LARGE
                weight[..., self.gates[n]] = transposed.contiguous() if large else transposed
            packed.append(by_copy(weight).to(self.product_dtype or weight.dtype))
        return packed

    def pack_biases(self, biases: Sequence[Tensor | None], like: Tensor) -> list[Tensor | None]:
        """Return each stage's biases as (copies, P), zero for a dimension without one; None if no dimension has one."""
        packed: list[Tensor | None] = []
        for owners, P in zip(self.owners, self.products, strict=True):
            present = [(n, bias) for n in owners if (bias := biases[n]) is not None]
            if not present:
                packed.append(None)
                continue
            total = like.new_zeros(len(self.plan.by_copy), P)
            for n, bias in present:
                total[:, self.gates[n]] = bias.reshape(-1, bias.shape[-1])
            packed.append(total)
        return packed


class Buffers:
    """The slots of a sweep.

    Attributes:
        X: input of each stage's product, (rows, B, D): slots that predecessors fill. Dimensions of earlier stages are
            already updated in it.
        M: each dimension's incoming memory, (rows, B, memory size).
        Z: each stage's pre-activations, later the values that a cell keeps, then their gradients: (C, B, G). A sweep
            that saves nothing for a backward pass has room for only ``layout.at_once`` blocks: see ``begin``.
        vectors: each dimension's other parameters, (copies, length).
        factors: dropout on the inputs of products, or None.
        keep: each dimension's (keep_h, keep_m), each (C, B, size), (C, B, 1) or None.
        is_low: True if the steps read and write bfloat16 (``bfloat16.is_low``); Z then keeps pre-activations.
        low_X: the operands of products in bfloat16 if ``is_low``, otherwise None: a copy of X, times the factors.
        added_biases: for each dimension, the bias that its step adds to z, (copies, G_n), or None.
        dH: gradients of the inputs of each block and of the outputs of the grid, (rows, B, D); in the backward pass.
        dM: the gradients of memories in the same rows.
        grad_vectors: gradients of ``vectors``.
        grad_biases: for each dimension whose step adds up the gradient of its bias, (threads, copies, G_n), else None.
    """

    def __init__(
        self,
        layout: Layout,
        X: Sequence[Tensor],
        M: Sequence[Tensor],
        Z: Sequence[Tensor],
        vectors: Sequence[tuple[Tensor, ...]],
        masks: "RowMasks | None" = None,
    ) -> None:
        self.layout = layout
        self.X, self.M, self.Z = X, M, Z
        self.first = 0  # number of the first row in Z
        self.is_low = False
        self.low_X: list[Tensor] | None = None
        self.added_biases: list[Tensor | None] = [None] * len(M)
        self.vectors = [tuple(x.reshape(-1, x.shape[-1]) for x in own) for own in vectors]
        self.factors, self.keep = masks or RowMasks(None, [(None, None)] * len(M))
        self.dH: Tensor
        self.dM: list[Tensor]
        self.grad_vectors: list[tuple[Tensor, ...]]
        self.grad_biases: list[Tensor | None] = [None] * len(M)

    def zero_vector_gradients(self) -> None:
        """Set ``grad_vectors`` to zero, in double precision on a CPU: they may sum over millions of rows."""
        exact = torch.float64 if self.X[0].device.type == "cpu" else None
        self.grad_vectors = [tuple(x.new_zeros(x.shape, dtype=exact) for x in own) for own in self.vectors]

    @property
    def keeps_gates(self) -> bool:
        """True if Z has room for all blocks."""
        return len(self.Z[0]) == self.layout.plan.blocks

    def begin(self, rows: slice) -> None:
        """Announce the rows to compute next; if Z has no room for all rows, they overwrite the previous ones."""
        if not self.keeps_gates:
            self.first = rows.start

    def z(self, k: int, rows: slice) -> Tensor:
        """Return stage k's part of Z: (r, B, G)."""
        return self.Z[k][rows.start - self.first : rows.stop - self.first]

    def product(self, k: int, rows: slice) -> Tensor:
        """Return the part of ``z`` that stage k's product computes: (r, B, P)."""
        z, P = self.z(k, rows), self.layout.products[k]
        return z if z.shape[-1] == P else z[:, :, :P]

    def operand(self, k: int, rows: slice) -> Tensor:
        """Return the input of stage k's product: (r, B, D)."""
        if self.low_X is not None:
            return self.low_X[k][rows]
        return self.factored(self.X[k][rows], rows, slice(0, self.layout.D))

    def factored(self, x: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return some columns of X (r, B, columns) times their factors; x itself if these are 1."""
        if self.factors is None or not self.factors.change(columns):
            return x
        return self.factors.of(rows, columns).times(x)

    def drop_low(self, k: int, rows: slice) -> None:
        """Fill stage k's operand in bfloat16 if it is not a copy of X, which the steps fill."""
        if self.low_X is not None and self.factors is not None:
            self.factors.of(rows).times(self.X[k][rows], out=self.low_X[k][rows])

    def inputs(self, n: int, rows: slice) -> Inputs:
        """Return the inputs of dimension n's cell in these blocks; blocks and batch rows share one axis."""
        k, copies = self.layout.stage_of[n], self.layout.plan.copy_of[rows]
        vectors = tuple(
            x[0] if len(x) == 1 else x[copies].repeat_interleave(self.layout.B, dim=0) for x in self.vectors[n]
        )
        keep_h, keep_m = (None if keep is None else keep[rows].flatten(0, 1) for keep in self.keep[n])
        return Inputs(
            self.z(k, rows)[:, :, self.layout.gates[n]].flatten(0, 1),
            self.X[k][rows, :, self.layout.columns[n]].flatten(0, 1),
            self.M[n][rows].flatten(0, 1),
            vectors,
            keep_h,
            keep_m,
        )

    def add_vector_gradients(self, n: int, rows: slice, gradients: Sequence[Tensor]) -> None:
        """Add gradients with respect to the vectors of ``inputs``."""
        for total, gradient in zip(self.grad_vectors[n], gradients, strict=True):
            if len(total) == 1:
                total[0] += gradient
            else:
                by_block = gradient.view(rows.stop - rows.start, self.layout.B, gradient.shape[-1]).sum(1)
                total.index_add_(0, self.layout.plan.copy_of[rows], by_block.to(total.dtype))

    def vector_gradients(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return all dimensions' ``grad_vectors`` in one list, shaped like the vectors."""
        flat = [gradient for own in self.grad_vectors for gradient in own]
        return [gradient.view(x.shape).to(x.dtype) for gradient, x in zip(flat, vectors, strict=True)]


class RowMasks(NamedTuple):
    """Masks of a sweep in the order of rows: ``Buffers.factors`` and ``Buffers.keep``."""

    factors: Factors | None
    keep: list[tuple[Tensor | None, Tensor | None]]

    @classmethod
    def of(cls, masks: Sequence[Masks], layout: Layout, like: Tensor) -> "RowMasks":
        """Return masks, which are in the order of coordinates, in the order of rows."""
        plan, axes, shape = layout.plan, len(layout.extents), (*layout.extents, layout.B)

        def rows(mask: Tensor | None) -> Tensor | None:
            """Return a mask in the order of rows; one of whole rows, such as padding, stays one number a row."""
            if mask is None:
                return None
            mask = torch.atleast_1d(mask)
            return mask.expand(*shape, mask.shape[-1]).flatten(0, axes - 1)[plan.order]

        factors = None
        if given := [mask.drop for mask in masks if mask.drop is not None]:
            select = all(drop.dtype == torch.bool for drop in given)
            drop = like.new_empty(plan.blocks, layout.B, layout.D, dtype=torch.bool if select else None)
            scale = like.new_ones(layout.D) if select else None
            for columns, size, mask in zip(layout.columns, layout.block.sizes, masks, strict=True):
                if (own := mask.drop if select else mask.factor) is None:
                    drop[:, :, columns].fill_(1)
                else:
                    own = own.expand(*shape, size).flatten(0, axes - 1)
                    drop[:, :, columns] = own.index_select(0, plan.order)
                if scale is not None and mask.drop is not None and mask.scale is not None:
                    scale[columns] = mask.scale
            dropped = [n for n, mask in enumerate(masks) if mask.drop is not None]
            starts, stops = zip(*((layout.columns[n].start, layout.columns[n].stop) for n in dropped), strict=True)
            factors = Factors(drop, scale, slice(min(starts), max(stops)))
        return cls(factors, [(rows(mask.keep_h), rows(mask.keep_m)) for mask in masks])


def put(buffer: Tensor, to: Runs | Tensor, values: Tensor) -> None:
    """Write values (r, B, d) to the successors' rows of a buffer (rows, B, d)."""
    if isinstance(to, Tensor):
        buffer.index_copy_(0, to, values)
    else:
        for source, target in to:
            buffer[target].copy_(values[source])


def take(buffer: Tensor, at: Runs | Tensor) -> Tensor:
    """Return the successors' rows of a buffer in the order of the diagonal: (r, B, d), a view if possible."""
    if isinstance(at, Tensor):
        return buffer.index_select(0, at)
    if len(at) == 1:
        return buffer[at[0][1]]
    return torch.cat([buffer[target] for _, target in at])
