"""Several trained networks evaluated as one: the mean of their probabilities.

Shape legend: B batch rows, T time steps, C classes; for translations, R rows and V target symbols.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gridlstm.data.base import Batch
from gridlstm.data.spec import PairSpec, Spec
from gridlstm.metrics import RatioOfSums
from gridlstm.models.base import SequenceModel, State
from gridlstm.models.translation import Context, TranslationModel
from gridlstm.tasks.base import Prediction
from gridlstm.tasks.sequence import SequenceTask
from gridlstm.tasks.translate import Translate


def mean_log_p(logits: Sequence[Tensor]) -> Tensor:
    """Return log((p_1 + … + p_n) / n) of the logits of n networks, (…, C) each, at least in float32."""
    # As F.cross_entropy does under autocast, which leaves log_softmax on a CPU in bfloat16.
    log_p = [each.log_softmax(-1, dtype=torch.promote_types(each.dtype, torch.float32)) for each in logits]
    return log_p[0] if len(log_p) == 1 else torch.stack(log_p).logsumexp(0) - math.log(len(log_p))


class MeanProbability(SequenceModel):
    """Mean probability p = (p_1 + … + p_n) / n of networks that read and predict the same symbols.

    The networks may differ in everything else. ``forward`` returns log p, (B, T, C), and the states of all networks.

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
        return mean_log_p([logits for logits, _ in found]), tuple(after for _, after in found)


class Ensemble(SequenceTask):
    """Task of the first member; its metrics evaluate the mean of all members' probabilities.

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
        self.metrics = first.metrics

    def make_head(self, model: SequenceModel, spec: Spec) -> nn.Module:
        return nn.Identity()  # log p is what a head would return

    def make_metrics(self) -> nn.ModuleDict:
        return self._make_metrics()

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Batch, prediction: Prediction) -> None:
        self._update_metrics(metrics, batch, prediction)


class MeanTranslation(TranslationModel):
    """Mean probability p = (p_1 + … + p_n) / n of networks that translate between the same symbols.

    ``advance`` returns log p, (R, T, V). A context or a state is a tuple with one entry for each network.

    Args:
        members: trained tasks.
    """

    def __init__(self, members: Sequence[Translate]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.output_size = members[0].classes

    def read(self, source: Tensor, source_mask: Tensor) -> Context:
        return tuple(cast(Translate, member).model.read(source, source_mask) for member in self.members)

    def start(self, context: Context) -> State:
        return tuple(
            cast(Translate, member).model.start(each) for member, each in zip(self.members, context, strict=True)
        )

    def advance(self, context: Context, state: State, inputs: Tensor) -> tuple[Tensor, State]:
        logits, after = [], []
        for member, each, before in zip(self.members, context, state, strict=True):
            task = cast(Translate, member)
            y, own = task.model.advance(each, before, inputs)
            logits.append(task.head(y))
            after.append(own)
        return mean_log_p(logits), tuple(after)


class TranslateTogether(Translate):
    """Translation task; its metrics evaluate the mean of all members' probabilities.

    Args:
        members: trained tasks for the same symbols.
        spec: sizes of the data.
    """

    def __init__(self, members: Sequence[Translate], spec: PairSpec) -> None:
        super().__init__(MeanTranslation(members), spec, members[0].make_optimizer)
        self.networks = tuple(members)  # which ``model`` holds as modules

    def make_head(self, model: TranslationModel, spec: PairSpec, tied: bool) -> nn.Module:
        return nn.Identity()  # log p is what a head would return
