"""Prediction of every frame of a moving image from the frames before it.

Shape legend: B batch rows, T frames, (H, W) rows and columns of pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.data.base import VideoBatch
from gridlstm.data.spec import VideoSpec
from gridlstm.metrics import Loss, RatioOfSums, Share, bits
from gridlstm.models.base import VideoModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction, Task
from gridlstm.tasks.patch_head import PatchHead


class PredictFrames(Task):
    """Binary cross-entropy of every pixel of the next frame, at every frame.

    The pixels of a frame are independent given the frames before it.

    Metrics: ``loss``, nats a pixel; ``bits``, the same in bits; ``accuracy``, the share of the pixels whose more
    probable value is right; ``iou``, the pixels that are lit and predicted to be lit, divided by the pixels that are
    lit or predicted to be lit.

    Args:
        model: the network; its map must divide a frame.
        spec: sizes of the data.
        optimizer, scheduler: see ``Task``.

    Raises:
        UserError: see ``PatchHead``.
    """

    model: VideoModel

    def __init__(
        self, model: VideoModel, spec: VideoSpec, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        self.head = PatchHead(model, spec, spec.channels)

    @property
    def output_text(self) -> str:
        return "1 bit of each pixel of the next frame"

    @property
    def guessing_loss(self) -> float:
        return math.log(2)

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss(), "bits": bits(), "accuracy": Share(), "iou": Share()})

    def forward(self, frames: Tensor) -> Tensor:
        """Return the logits (B, T, channels, H, W) of lit pixels in the frame after each frame of ``frames``."""
        y = self.model(frames)
        return self.head(y.flatten(0, 1)).unflatten(0, y.shape[:2])

    def predict(self, batch: VideoBatch, state: object) -> Prediction:
        """Return logits and the nats of each pixel, (B, T, channels, H, W) both."""
        logits = self(batch.frames)
        nats = F.binary_cross_entropy_with_logits(logits, batch.targets.to(logits.dtype), reduction="none")
        return Prediction(logits, nats, torch.tensor(nats.numel(), device=nats.device))

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: VideoBatch, prediction: Prediction) -> None:
        nats = prediction.losses.double().sum()
        found, lit = prediction.outputs > 0, batch.targets
        metrics["loss"].update(nats, prediction.terms)
        metrics["bits"].update(nats, prediction.terms)
        metrics["accuracy"].update((found == lit).sum(), prediction.terms)
        metrics["iou"].update((found & lit).sum(), (found | lit).sum())
