"""Recurrent state that a task carries from batch to batch.

Shape legend: L layers, B batch rows; every tensor of a state is (L, B, ...).
"""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gridlstm.data.base import owned_rows
from gridlstm.errors import UserError
from gridlstm.models.base import SequenceModel, State


class CarriedState:
    """States after the last training batch and after the last evaluation batch.

    A checkpoint holds the training state of all ranks' rows in order. Each rank takes its own rows back, so a run may
    resume on another number of ranks.

    Args:
        model: model whose initial state is used.
    """

    def __init__(self, model: SequenceModel) -> None:
        self._initial = model.initial_state
        self.training: State = None
        self.evaluation: State = None
        self._restored: list[Tensor] | None = None

    def before(self, reset: Tensor, trainer: L.Trainer) -> State:
        """Return the state of this rank's rows before a training batch.

        Args:
            reset: see ``with_fresh_rows``.
            trainer: trainer of the run, which knows the ranks.

        Raises:
            UserError: the state in the checkpoint belongs to another model or batch size.
        """
        if self._restored is not None:
            self.training = self._owned(self._restored, len(reset), trainer)
            self._restored = None
        return self.training

    def _owned(self, restored: list[Tensor], rows: int, trainer: L.Trainer) -> State:
        everyone = restored[0].shape[1]
        owned = owned_rows(everyone, trainer.global_rank, trainer.world_size)
        fresh, structure = tree_flatten(self._initial(rows))
        if [leaf.shape for leaf in fresh] != [leaf[:, owned.start : owned.stop].shape for leaf in restored]:
            raise UserError(
                f"the checkpoint carries the state of {everyone} rows, which does not fit this model or batch size. "
                f"Resume with the configuration of the run that wrote it."
            )
        return tree_unflatten(
            [old[:, owned.start : owned.stop].to(new) for old, new in zip(restored, fresh, strict=True)], structure
        )

    def save(self, trainer: L.Trainer) -> list[Tensor] | None:
        """Return the training state of all ranks' rows on the CPU; before the first batch, that of ``restore`` or None.

        All ranks call this.
        """
        if self.training is None:
            return self._restored
        leaves = [leaf.cpu() for leaf in tree_flatten(self.training)[0]]
        if not leaves:  # a state without tensors is the same at any time
            return None
        if trainer.world_size == 1:
            return leaves
        ranks: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(ranks, leaves)
        return [torch.cat(parts, dim=1) for parts in zip(*ranks, strict=True)]

    def restore(self, leaves: list[Tensor] | None) -> None:
        """Set the state from ``save`` for the next training batch."""
        self._restored = leaves


def with_fresh_rows(state: State, reset: Tensor, model: SequenceModel) -> State:
    """Return the state with initial values in the rows where ``reset`` (B,) is true; B may have changed."""

    def choose(old: Tensor, new: Tensor) -> Tensor:
        if old.shape != new.shape:  # the last group of streams may be smaller, and starts from the initial state
            return new
        return torch.where(reset.view(1, -1, *[1] * (old.dim() - 2)), new, old)

    return tree_map(choose, state, model.initial_state(len(reset)))
