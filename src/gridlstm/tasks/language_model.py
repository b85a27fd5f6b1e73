"""Predict the next symbol of a text with truncated backpropagation through time (section 4.3)."""

from torch import nn

from gridlstm.data.base import Batch
from gridlstm.data.spec import Spec
from gridlstm.metrics import Loss, Perplexity, RatioOfSums, bits
from gridlstm.models.base import SequenceModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction
from gridlstm.tasks.sequence import SequenceTask


class LanguageModel(SequenceTask):
    """Cross-entropy over all symbols, with state carried from window to window.

    Metrics: ``loss`` (nats per symbol), ``bpc`` (bits per character or byte; for words ``bpw``, bits per word) and
    ``perplexity`` (exp of the loss), all from the sum over symbols divided by their number.
    """

    def __init__(
        self,
        model: SequenceModel,
        spec: Spec,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        temperature: float = 1.0,
    ) -> None:
        self._bits = "bpw" if spec.unit == "words" else "bpc"
        super().__init__(model, spec, optimizer, scheduler, carry_state=True, temperature=temperature)

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss(), self._bits: bits(), "perplexity": Perplexity()})

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Batch, prediction: Prediction) -> None:
        total, count = prediction.losses.double().sum(), prediction.terms
        for metric in metrics.values():
            metric.update(total, count)
