"""Base class of models of pairs: a source is read, and a target is predicted symbol by symbol.

Shape legend: B pairs, S source places, T target steps, R rows, such as the hypotheses of a beam, e output size.
"""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gridlstm.engine.dispatch import needs_plain_ops
from gridlstm.errors import UserError
from gridlstm.models.base import InputProjection, Model, State

Context = Any
"""A NamedTuple of tensors, each (·, R, …): the encoded source, from which a target is predicted."""

Rows = TypeVar("Rows")


class TranslationModel(Model):
    """``forward(source, source_mask, inputs) -> y``: no loss, no logging.

    A target is predicted in pieces of any length: ``read`` the source, ``start``, then ``advance`` with the known
    symbols. Any division into pieces gives the same outputs. Rows are axis 1 of every tensor of a context and a state:
    ``select_rows`` repeats, reorders and drops them. The module itself stores no state.
    """

    source: InputProjection
    """Projection of source symbols."""
    target: InputProjection
    """Projection of target symbols."""

    def read(self, source: Tensor, source_mask: Tensor) -> Context:
        """Return the context of sources.

        Args:
            source: (B, S) int64 symbols.
            source_mask: (B, S) bool, False on padding. Padding follows the symbols of a row and may hold any symbol.

        Raises:
            UserError: if the shape or data type of an argument does not fit, or a row has no symbol, or has a symbol
                after padding.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def start(self, context: Context) -> State:
        """Return the state before the first target step."""
        raise NotImplementedError(f"{type(self).__name__} must define start")

    def advance(self, context: Context, state: State, inputs: Tensor) -> tuple[Tensor, State]:
        """Return the outputs (R, T, e) of the next T steps, and the state after them.

        Args:
            context: from ``read``.
            state: from ``start`` or the previous call.
            inputs: (R, T) int64 symbols of the target, one step late.
        """
        raise NotImplementedError(f"{type(self).__name__} must define advance")

    def step(self, context: Context, state: State, symbols: Tensor) -> tuple[Tensor, State]:
        """Return the output (R, e) of the next step, given the symbol (R,) before it, and the state after it."""
        y, state = self.advance(context, state, symbols[:, None])
        return y[:, 0], state

    def alignment(self, source: Tensor, source_mask: Tensor, inputs: Tensor) -> Tensor | None:
        """Return the attention weights (B, T, S) of each target step over the source places, which sum to 1.

        Return None if the model has no such weights.
        """
        return None

    def forward(self, source: Tensor, source_mask: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs (B, T, e) of whole targets; see ``read`` and ``advance``."""
        context = self.read(source, source_mask)
        return self.advance(context, self.start(context), inputs)[0]

    # nn.Module's own __call__ is untyped.
    def __call__(self, source: Tensor, source_mask: Tensor, inputs: Tensor) -> Tensor:
        return cast(Tensor, super().__call__(source, source_mask, inputs))


def select_rows(tree: Rows, rows: Tensor) -> Rows:
    """Return the given rows (R,) of a context or a state, in their order; a row may be given several times."""
    return tree_map(lambda x: x.index_select(1, rows), tree)


def check_source(source: Tensor, source_mask: Tensor) -> None:
    """Raise UserError unless the mask fits the source: see ``TranslationModel.read``."""
    if source_mask.shape != source.shape or source.dim() != 2 or source_mask.dtype != torch.bool:
        raise UserError(
            f"expected a source (B, S) and a mask of booleans of the same shape, got {tuple(source.shape)} and "
            f"{source_mask.dtype} of shape {tuple(source_mask.shape)}."
        )
    if needs_plain_ops(source_mask):  # without values
        return
    if not (source_mask[:, :1].all() and (source_mask[:, :-1] | ~source_mask[:, 1:]).all()) or source.shape[1] == 0:
        raise UserError(
            "a row of the source has no symbol, or one after padding. Expected padding only at the end of a row, "
            "after at least one symbol."
        )
