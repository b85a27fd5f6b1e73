"""Dynamic evaluation: a language model that keeps learning from the text it is tested on (Krause et al. 2018)."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import Tensor

from gridlstm.data.base import Batch
from gridlstm.errors import UserError
from gridlstm.metrics import RatioOfSums
from gridlstm.tasks.base import Task

STATISTICS = 200
"""Number of training batches used to estimate the size of the gradients."""
EPSILON = 1e-5


class DynamicEvaluation:
    """Evaluation that trains on each window after predicting it, so weights have not seen the symbols they predict.

    Let g be the gradient of the window's mean loss, w_g the trained weights, and s the root mean square of each
    weight's gradient over training batches. Let r = s / mean(s), with the mean over all weights. A step on a window is
    (arXiv 1709.07432):

        w <- w - rate g / (s + epsilon) + min(decay r, 1) (w_g - w)

    Args:
        task: task whose weights change.
        training: training batches; the first ``STATISTICS`` are read.
        rate: learning rate.
        decay: decay towards the trained weights.
        context: context manager in which the network runs, such as mixed precision.

    Raises:
        UserError: the rate or decay is out of range; from ``evaluate``, if the weights diverge.
    """

    def __init__(
        self,
        task: Task,
        training: Iterable[Batch],
        rate: float,
        decay: float,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if not 0 <= rate < math.inf or not 0 <= decay < math.inf:
            raise UserError(f"dynamic_rate and dynamic_decay must be 0 or more, got {rate} and {decay}.")
        self.context = context
        self.task = task.eval()
        self.weights = [weight for weight in task.parameters() if weight.requires_grad]
        self.trained = [weight.detach().clone() for weight in self.weights]
        self.rate = rate
        squares = [torch.zeros_like(weight) for weight in self.weights]
        count, state = 0, None
        for batch in islice(training, STATISTICS):
            count += 1
            _, gradients, state = self._gradients(batch, state)
            for square, gradient in zip(squares, gradients, strict=True):
                square += gradient**2
        self.size = [(square / count).sqrt() for square in squares]
        total = torch.stack([size.sum() for size in self.size]).sum()
        total = total.clamp_min(torch.finfo(total.dtype).tiny)  # a text of one symbol has no gradients
        mean = total / sum(size.numel() for size in self.size)
        self.pull = [(decay * size / mean).clamp(max=1) for size in self.size]

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the task's metrics over all batches, in order."""
        metrics: dict[str, RatioOfSums] = {name: metric for name, metric in self.task.make_metrics().items()}  # type: ignore[misc]  # noqa: C416
        state = None
        for number, batch in enumerate(batches, 1):
            nats, gradients, state = self._gradients(batch, state)
            if not bool(nats.sum().isfinite()):
                raise UserError(
                    f"the loss of window {number} is not a number: the weights have diverged. Lower dynamic_rate, now "
                    f"{self.rate}."
                )
            for metric in metrics.values():
                metric.update(nats.double().sum().cpu(), batch.loss_mask.sum())
            self._step(gradients)
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    def _gradients(self, batch: Batch, state: object) -> tuple[Tensor, tuple[Tensor, ...], object]:
        """Return the nats of a window, the gradient of their mean, and the state after it."""
        batch = Batch(*(x.to(self.weights[0].device) for x in batch))
        with torch.enable_grad(), self.context():
            _, nats, count, state = self.task.predict(batch, state)
            gradients = torch.autograd.grad(nats.sum() / count, self.weights)
        return nats.detach(), gradients, state

    @torch.no_grad()
    def _step(self, gradients: tuple[Tensor, ...]) -> None:
        for weight, gradient, trained, size, pull in zip(
            self.weights, gradients, self.trained, self.size, self.pull, strict=True
        ):
            weight.add_(pull * (trained - weight) - self.rate * gradient / (size + EPSILON))
