"""One class for each image.

Shape legend: B batch rows, (Y, X) rows and columns of a model's map, e its output size, C classes.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.data.base import ImageBatch
from gridlstm.data.spec import ImageSpec
from gridlstm.errors import UserError, check_at_least_one, check_dropout
from gridlstm.metrics import Loss, RatioOfSums, Share
from gridlstm.models.base import ImageModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction, Task

Read = Literal["all", "pooled", "last_corner"]


class ReadOut(nn.Module):
    """Read-out of a model's map: a layer of ReLUs, then logits.

    Args:
        model: the network below.
        classes: C.
        read: "all" joins the outputs of all places, Y X e numbers, as the paper does; "pooled" takes their mean;
            "last_corner" takes the outputs of the place where the last layer's scan ends.
        width: number of ReLUs, 4096 in the paper; None to compute the logits directly from the outputs that are read.
        dropout: probability of dropping each ReLU, or each output that is read if there are no ReLUs.

    Raises:
        UserError: an option is out of its range, or the model has no last place.
    """

    def __init__(self, model: ImageModel, classes: int, read: Read, width: int | None, dropout: float) -> None:
        super().__init__()
        if read not in ("all", "pooled", "last_corner"):
            raise UserError(f"read must be all, pooled or last_corner, got {read!r}.")
        if read == "last_corner" and model.last_place is None:
            raise UserError(
                f"read=last_corner is for models that scan from corner to corner, which {type(model).__name__} does "
                f"not: choose read=pooled or read=all."
            )
        check_dropout(dropout)
        if width is not None:
            check_at_least_one(width=width)
        self.read: Read = read
        self.place = model.last_place
        features = model.output_size * (math.prod(model.map_size) if read == "all" else 1)
        self.hidden = None if width is None else nn.Linear(features, width)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(width or features, classes)

    def forward(self, y: Tensor) -> Tensor:
        """Return logits (B, C) of a map (B, Y, X, e)."""
        if self.read == "all":
            y = y.flatten(1)
        elif self.read == "pooled":
            y = y.mean((1, 2))
        else:
            assert self.place is not None, "checked by the constructor"
            y = y[:, *self.place]
        if self.hidden is not None:
            y = self.hidden(y).relu()
        return self.logits(self.dropout(y))


class ClassifyImage(Task):
    """Cross-entropy of one class for each image.

    Metrics: ``accuracy``, the share of images that are classified correctly, and ``error``, 1 - accuracy.

    Args:
        model: the network.
        spec: sizes of the data.
        optimizer, scheduler: see ``Task``.
        read, width, dropout: see ``ReadOut``.
    """

    model: ImageModel

    def __init__(
        self,
        model: ImageModel,
        spec: ImageSpec,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        read: Read = "pooled",
        width: int | None = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        self.head = ReadOut(model, spec.classes, read, width, dropout)
        self.classes = spec.classes
        self.class_names = spec.class_names or tuple(map(str, range(spec.classes)))

    @property
    def output_text(self) -> str:
        return f"{self.classes} classes"

    @property
    def guessing_loss(self) -> float:
        return math.log(self.classes)

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss(), "accuracy": Share(), "error": Loss()})

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, channels, height, width)."""
        return self.head(self.model(images))

    def predict(self, batch: ImageBatch, state: object) -> Prediction:
        """Return logits (B, C) and the nats (B,) of each class."""
        logits = self(batch.images)
        nats = F.cross_entropy(logits, batch.targets, reduction="none")
        return Prediction(logits, nats, torch.tensor(len(nats), device=nats.device))

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: ImageBatch, prediction: Prediction) -> None:
        metrics["loss"].update(prediction.losses.double().sum(), prediction.terms)
        right = (prediction.outputs.argmax(-1) == batch.targets).sum()
        metrics["accuracy"].update(right, prediction.terms)
        metrics["error"].update(prediction.terms - right, prediction.terms)
