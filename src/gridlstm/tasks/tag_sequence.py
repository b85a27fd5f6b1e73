"""A class at every step of a sequence that stands for itself: the algorithmic tasks of sections 4.1 and 4.2."""

from torch import Tensor, nn

from gridlstm.data.base import Batch
from gridlstm.metrics import RatioOfSums
from gridlstm.tasks.base import SequenceTask


class TagSequence(SequenceTask):
    """Cross-entropy over all steps; accuracy over the answer.

    Metrics: ``loss`` (nats per step), ``accuracy`` (share of answer symbols that are right, the paper's measure),
    ``sequence_accuracy`` (share of samples whose whole answer is right).
    """

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({name: RatioOfSums() for name in ("loss", "accuracy", "sequence_accuracy")})

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Batch, logits: Tensor, nats: Tensor) -> None:
        right = (logits.argmax(dim=-1) == batch.targets) | ~batch.answer_mask  # (B, T)
        wrong = ~right
        answers = batch.answer_mask.sum()
        metrics["loss"].update(nats.double().sum(), batch.loss_mask.sum())
        metrics["accuracy"].update(answers - wrong.sum(), answers)
        metrics["sequence_accuracy"].update(right.all(dim=1).sum(), len(right))
