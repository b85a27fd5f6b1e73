"""Several trained networks evaluated as one: the mean of their probabilities.

Shape legend: B batch rows, T time steps, C classes.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gridlstm.data.base import Batch
from gridlstm.data.spec import Spec
from gridlstm.metrics import RatioOfSums
from gridlstm.models.base import SequenceModel, State
from gridlstm.tasks.base import Prediction
from gridlstm.tasks.sequence import SequenceTask


class MeanProbability(SequenceModel):
    """p = (p_1 + … + p_n) / n, of networks that may differ in everything except the symbols they read and predict.

    ``forward`` returns log p, (B, T, C), and the states of all networks.

    Args:
        members: trained tasks.
    """

    def __init__(self, members: Sequence[SequenceTask]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.output_size = members[0].classes

    def initial_state(self, batch_size: int) -> State:
        return tuple(cast(SequenceTask, member).model.initial_state(batch_size) for member in self.members)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        states = [None] * len(self.members) if state is None else state
        found = [member(x, before) for member, before in zip(self.members, states, strict=True)]
        log_p = torch.stack([logits.log_softmax(-1) for logits, _ in found]).logsumexp(0) - math.log(len(found))
        return log_p, tuple(after for _, after in found)


class Ensemble(SequenceTask):
    """The task of the first member, whose metrics judge the mean of all members' probabilities.

    Args:
        members: trained tasks of one kind, for the same symbols.
        spec: sizes of the data.
        temperature: divisor of log p.
    """

    def __init__(self, members: Sequence[SequenceTask], spec: Spec, temperature: float = 1.0) -> None:
        first = members[0]
        self._make_metrics, self._update_metrics = first.make_metrics, first.update_metrics
        mean, carries = MeanProbability(members), first.carried is not None
        super().__init__(mean, spec, first.make_optimizer, carry_state=carries, temperature=temperature)
        self.networks = tuple(members)  # which ``model`` holds as modules
        self.head = nn.Identity()  # log p is what a head would return
        self.metrics = first.metrics

    def make_metrics(self) -> nn.ModuleDict:
        return self._make_metrics()

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Batch, prediction: Prediction) -> None:
        self._update_metrics(metrics, batch, prediction)
