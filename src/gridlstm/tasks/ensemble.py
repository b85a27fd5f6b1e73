"""Combine several trained networks by the mean of their predictions.

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
    """Mean p = (p_1 + … + p_n) / n of networks that read and predict the same symbols but may differ otherwise.

    ``forward`` returns log p, (B, T, C), instead of logits. The state holds the states of all networks.

    Args:
        members: trained tasks.
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
