"""Predict a class at each step of a sequence.

Shape legend: B batch rows, T time steps, C classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gridlstm.data.base import Batch
from gridlstm.data.spec import Spec
from gridlstm.models.base import SequenceModel, State, start_weights_within
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction, Task
from gridlstm.tasks.carried_state import CarriedState, with_fresh_rows


class SequenceTask(Task):
    """Task of predicting a class at each step: model, linear read-out, cross-entropy.

    Subclasses define and update the metrics.

    Args:
        model: the network.
        spec: sizes of the data.
        optimizer, scheduler: see ``Task``.
        carry_state: keep the recurrent state from batch to batch, without its gradient, where ``Batch.reset`` is false:
            truncated backpropagation through time. Otherwise every batch starts from a fresh state.
        temperature: divisor of the logits, above 0: for a trained network, the value that is best on the validation
            split.
    """

    model: SequenceModel

    def __init__(
        self,
        model: SequenceModel,
        spec: Spec,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        carry_state: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        self.head = self.make_head(model, spec)
        self.classes = spec.output_size
        self.temperature = temperature
        self.carried = CarriedState(model) if carry_state else None

    def make_head(self, model: SequenceModel, spec: Spec) -> nn.Module:
        """Return the read-out that turns the model's output into logits."""
        head = nn.Linear(model.output_size, spec.output_size)
        if model.init_bound is not None:
            start_weights_within(head, model.init_bound)
            nn.init.uniform_(head.bias, -model.init_bound, model.init_bound)
        return head

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Return logits (B, T, C) of symbols (B, T), and the state after the last step."""
        y, state = self.model(x, state)
        return self.head(y), state

    def predict(self, batch: Batch, state: State) -> Prediction:
        """Return logits (B, T, C) and the nats (B, T) of each target, zero outside ``loss_mask``."""
        if self.carried is None:
            state = None
        elif state is not None:
            state = with_fresh_rows(state, batch.reset, self.model)
        logits, state = self(batch.inputs, state)
        logits = logits / self.temperature if self.temperature != 1 else logits
        nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        nats = nats.view_as(batch.targets) * batch.loss_mask
        state = None if self.carried is None else tree_map(torch.Tensor.detach, state)
        return Prediction(logits, nats, batch.loss_mask.sum(), state)

    @property
    def output_text(self) -> str:
        return f"{self.classes} classes"

    @property
    def state_size(self) -> int:
        return sum(leaf.numel() for leaf in tree_leaves(self.model.initial_state(1)))

    @property
    def guessing_loss(self) -> float:
        return math.log(self.classes)
