"""Predict a class at each step of an independent sequence: the algorithmic tasks of sections 4.1 and 4.2."""

from torch import Tensor, nn

from gridlstm.data.base import Batch
from gridlstm.data.spec import Spec
from gridlstm.metrics import Loss, RatioOfSums, Share
from gridlstm.models.base import SequenceModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction
from gridlstm.tasks.sequence import SequenceTask

_JUDGED = ("accuracy", "sequence_accuracy")


class TagSequence(SequenceTask):
    """Cross-entropy over all steps; accuracy over the answer.

    Metrics: ``loss`` (nats per step), ``accuracy`` (share of answer symbols that are right, the paper's measure) and
    ``sequence_accuracy`` (share of samples whose whole answer is right). If test samples have several lengths, both
    accuracies are also reported for each, as in ``test/accuracy_20_digits``.
    """

    def __init__(
        self,
        model: SequenceModel,
        spec: Spec,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(model, spec, optimizer, scheduler, temperature=temperature)
        self.test_lengths = spec.test_lengths
        for name in spec.test_lengths:
            for metric in _JUDGED:
                self.metrics["test_"].add_module(f"{metric}_{name}", Share())

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss(), **{name: Share() for name in _JUDGED}})

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Batch, prediction: Prediction) -> None:
        right = (prediction.outputs.argmax(dim=-1) == batch.targets) | ~batch.answer_mask  # (B, T)
        metrics["loss"].update(prediction.losses.double().sum(), prediction.terms)
        self._judge(metrics, "", right, batch.answer_mask)
        for name, steps in self.test_lengths.items():
            if f"accuracy_{name}" in metrics:
                rows = batch.loss_mask.sum(dim=1) == steps
                self._judge(metrics, f"_{name}", right[rows], batch.answer_mask[rows])

    @staticmethod
    def _judge(metrics: dict[str, RatioOfSums], suffix: str, right: Tensor, answer: Tensor) -> None:
        """Add rows to the accuracies; ``right`` (B, T) is false only at wrong answers."""
        metrics[f"accuracy{suffix}"].update(answer.sum() - (~right).sum(), answer.sum())
        metrics[f"sequence_accuracy{suffix}"].update(right.all(dim=1).sum(), len(right))
