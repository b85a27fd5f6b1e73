"""Classify single vectors, such as a string of bits given in one step (parity)."""

from torch import Tensor

from gridlstm.data.spec import Spec
from gridlstm.models.base import SequenceModel, VectorModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler
from gridlstm.tasks.tag_sequence import TagSequence


class EachStep(SequenceModel):
    """Sequence model that applies a network without time to every step: y_t = model(x_t), without state."""

    def __init__(self, model: VectorModel) -> None:
        super().__init__()
        self.model = model
        self.output_size = model.output_size
        self.init_bound = model.init_bound

    def initial_state(self, batch_size: int) -> tuple[()]:
        return ()

    def set_progress(self, share: float) -> None:
        self.model.set_progress(share)

    def forward(self, x: Tensor, state: tuple[()] | None = None) -> tuple[Tensor, tuple[()]]:
        y = self.model(x.flatten(0, 1).to(next(self.parameters()).dtype))
        return y.unflatten(0, x.shape[:2]), ()


class ClassifyVector(TagSequence):
    """Cross-entropy of one class for each vector.

    Metrics: the same as for ``TagSequence``. The answer has one symbol, so ``accuracy`` and ``sequence_accuracy`` are
    both the share of vectors classified correctly.

    Args:
        model: network that reads the whole vector.
        spec, optimizer, scheduler, temperature: see ``SequenceTask``.
    """

    def __init__(
        self,
        model: VectorModel,
        spec: Spec,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(EachStep(model), spec, optimizer, scheduler, temperature)
