"""Prediction of every pixel of an image from the pixels before it, and sampling of images.

Shape legend: B batch rows, (H, W) rows and columns of pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gridlstm.data.base import PixelBatch
from gridlstm.data.spec import ImageSpec
from gridlstm.metrics import Loss, RatioOfSums, bits
from gridlstm.models.base import PixelModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction, Task


class PredictPixels(Task):
    """Binary cross-entropy of every pixel given all pixels before it in raster order.

    p(x) = prod_k p(x_k | x_1, …, x_{k-1}) (van den Oord et al. 2016, arXiv 1601.06759, equation 1), so the sum over
    pixels is the exact negative log-likelihood of an image.

    Metrics: ``loss``, nats a pixel; ``bpd``, the same in bits; ``nats``, nats an image.

    Args:
        model: the network.
        spec: sizes of the data, with one channel and two classes of a pixel.
        optimizer, scheduler: see ``Task``.

    Raises:
        ValueError: pixels do not have exactly one channel and two values.
    """

    model: PixelModel

    def __init__(
        self, model: PixelModel, spec: ImageSpec, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        if (spec.channels, spec.classes) != (1, 2):
            raise ValueError(f"expected pixels of 1 channel and 2 values, got {spec.channels} and {spec.classes}.")
        self.size = spec.height, spec.width
        self.head = nn.Linear(model.output_size, 1)

    @property
    def output_text(self) -> str:
        return "1 bit of each pixel"

    @property
    def guessing_loss(self) -> float:
        return math.log(2)

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss(), "bpd": bits(), "nats": Loss()})

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, H, W) of value 1 for images (B, 1, H, W) of -1 and 1."""
        return self.head(self.model(images)[0])[..., 0]

    def predict(self, batch: PixelBatch, state: object) -> Prediction:
        """Return logits (B, H, W) and the nats (B, H, W) of each pixel."""
        logits = self(batch.images)
        nats = F.binary_cross_entropy_with_logits(logits, batch.targets.to(logits.dtype), reduction="none")
        return Prediction(logits, nats, torch.tensor(nats.numel(), device=nats.device))

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: PixelBatch, prediction: Prediction) -> None:
        nats = prediction.losses.double().sum()
        for name, terms in (("loss", prediction.terms), ("bpd", prediction.terms), ("nats", len(batch.targets))):
            metrics[name].update(nats, terms)

    @torch.no_grad()
    def sample(self, number: int, seed: int) -> Tensor:
        """Return images (number, H, W) of 0 and 1, drawn pixel by pixel from the model.

        Each pixel takes one pass over its own row, because the state after the rows above is kept. The random numbers
        are the same on every device.
        """
        H, W = self.size
        uniform = torch.rand(number, H, W, generator=torch.Generator().manual_seed(seed)).to(self.device)
        rows, state = [], None
        for y in range(H):
            row = self.head.weight.new_zeros(number, 1, 1, W)  # pixels that are not drawn yet have no effect
            for x in range(W):
                one = uniform[:, y, x] < self.head(self.model(row, state)[0][:, 0, x])[:, 0].sigmoid()
                row[:, 0, 0, x] = 2 * one.to(row.dtype) - 1
            rows.append(row)
            _, state = self.model(row, state)
        return (torch.cat(rows, dim=2)[:, 0] > 0).long()
