"""Several trained networks as one: the mean of what they predict.

Shape legend: B batch rows, T time steps, C classes.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gridlstm.models.base import SequenceModel, State
from gridlstm.tasks.sequence import SequenceTask


class Ensemble(SequenceModel):
    """p = (p_1 + … + p_n) / n, of networks that may differ in all but the symbols that they read and predict.

    ``forward`` gives log p, (B, T, C), in the place of logits; the state is that of every network.

    Args:
        members: trained.
    """

    def __init__(self, members: Sequence[SequenceTask]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.output_size = members[0].head.out_features

    def initial_state(self, batch_size: int) -> State:
        return tuple(cast(SequenceTask, member).model.initial_state(batch_size) for member in self.members)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        states = [None] * len(self.members) if state is None else state
        found = [member(x, before) for member, before in zip(self.members, states, strict=True)]
        log_p = torch.stack([logits.log_softmax(-1) for logits, _ in found]).logsumexp(0) - math.log(len(found))
        return log_p, tuple(after for _, after in found)
