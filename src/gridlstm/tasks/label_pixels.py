"""One class for every pixel of an image.

Shape legend: B batch rows, C classes, (H, W) rows and columns of pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.data.base import PixelBatch
from gridlstm.data.spec import ImageSpec
from gridlstm.metrics import Loss, MeanOverClasses, RatioOfSums, Share
from gridlstm.models.base import ImageModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction, Task
from gridlstm.tasks.patch_head import PatchHead


class LabelPixels(Task):
    """Cross-entropy of one class for every pixel; class 0 is the background.

    Metrics, of all pixels of a split:

    * ``loss``: nats a pixel.
    * ``accuracy``: share of the pixels whose class is right.
    * ``accuracy_foreground``: the same share among the pixels whose true class is not the background.
    * ``iou``: intersection over union, averaged over classes: the pixels that have a class and are predicted to have
      it, divided by the pixels that have it or are predicted to have it (Everingham et al. 2010).

    Args:
        model: the network; its map must divide the image.
        spec: sizes of the data.
        optimizer, scheduler: see ``Task``.

    Raises:
        UserError: see ``PatchHead``.
    """

    model: ImageModel

    def __init__(
        self, model: ImageModel, spec: ImageSpec, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None
    ) -> None:
        self.classes = spec.classes
        super().__init__(model, optimizer, scheduler)
        self.head = PatchHead(model, spec, spec.classes)

    @property
    def output_text(self) -> str:
        return f"{self.classes} classes of each pixel"

    @property
    def guessing_loss(self) -> float:
        return math.log(self.classes)

    def make_metrics(self) -> nn.ModuleDict:
        shares = {"accuracy": Share(), "accuracy_foreground": Share(), "iou": MeanOverClasses(self.classes)}
        return nn.ModuleDict({"loss": Loss(), **shares})

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C, H, W) of images (B, channels, H, W)."""
        return self.head(self.model(images))

    def predict(self, batch: PixelBatch, state: object) -> Prediction:
        """Return logits (B, C, H, W) and the nats (B, H, W) of each pixel's class."""
        logits = self(batch.images)
        nats = F.cross_entropy(logits, batch.targets, reduction="none")
        return Prediction(logits, nats, torch.tensor(nats.numel(), device=nats.device))

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: PixelBatch, prediction: Prediction) -> None:
        metrics["loss"].update(prediction.losses.double().sum(), prediction.terms)
        found, targets = prediction.outputs.argmax(1), batch.targets
        right, foreground = found == targets, targets > 0
        metrics["accuracy"].update(right.sum(), prediction.terms)
        metrics["accuracy_foreground"].update((right & foreground).sum(), foreground.sum())

        def count(classes: Tensor) -> Tensor:
            return classes.flatten().bincount(minlength=self.classes)

        both = count(targets[right])
        metrics["iou"].update(both, count(targets) + count(found) - both)
