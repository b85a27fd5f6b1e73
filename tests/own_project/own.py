"""Tasks as a user writes them: an image classifier, a task with two input sequences, and a regression on floats."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from gridlstm.data.base import Batch, ImageBatch, PairBatch
from gridlstm.data.counter import random_integers
from gridlstm.data.generated import GeneratedData
from gridlstm.data.map_style import MapData
from gridlstm.data.spec import ImageSpec, PairSpec, Spec
from gridlstm.metrics import Loss, RatioOfSums, Share
from gridlstm.models.base import InputProjection, Model, SequenceModel
from gridlstm.tasks.base import MakeOptimizer, MakeScheduler, Prediction, Task


class Bars(MapData):
    """Images with one bright column each; the class is the number of the column."""

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(channels=1, height=4, width=4, classes=4)

    def dataset(self, split: Literal["train", "val", "test"]) -> Dataset[Any]:
        noise = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(len(split)))
        classes = torch.arange(16) % 4
        return TensorDataset(noise + F.one_hot(classes)[:, None, None, :], classes)

    def collate(self, samples: list[Any]) -> ImageBatch:
        images, classes = zip(*samples, strict=True)
        return ImageBatch(torch.stack(images), torch.stack(classes))


class Flat(Model):
    """One layer over all pixels."""

    def __init__(self, channels: int, height: int, width: int, hidden_size: int) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.layer = nn.Linear(channels * height * width, hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)).tanh()


class ClassifyImage(Task):
    """One class for each image."""

    def __init__(
        self, model: Flat, spec: ImageSpec, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        self.head = nn.Linear(model.output_size, spec.classes)

    @property
    def output_text(self) -> str:
        return f"{self.head.out_features} classes"

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss(), "accuracy": Share()})

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.model(images))

    def predict(self, batch: ImageBatch, state: object) -> Prediction:
        logits = self(batch.images)
        nats = F.cross_entropy(logits, batch.targets, reduction="none")
        return Prediction(logits, nats, torch.tensor(len(nats), device=nats.device))

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: ImageBatch, prediction: Prediction) -> None:
        metrics["loss"].update(prediction.losses.double().sum(), prediction.terms)
        metrics["accuracy"].update((prediction.outputs.argmax(-1) == batch.targets).sum(), prediction.terms)


class Shifted(GeneratedData):
    """The target is the source with 1 added to every symbol; sources have different lengths."""

    def __init__(self, length: int, alphabet: int, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, seed, num_val=12, num_test=12)
        self.length, self.alphabet = length, alphabet

    @property
    def spec(self) -> PairSpec:
        return PairSpec(self.alphabet, self.alphabet + 1, self.length, self.length)

    def generate(self, key: tuple[int, ...], index: Tensor) -> PairBatch:
        source = random_integers(key, index, self.length, self.alphabet)
        mask = torch.arange(self.length) < 1 + index[:, None] % self.length
        targets = source + 1
        return PairBatch(source, mask, F.pad(targets[:, :-1], (1, 0)), targets, mask)


class Pointwise(Model):
    """Reads source and target step by step."""

    def __init__(self, source_size: int, target_size: int, hidden_size: int) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.source, self.target = InputProjection(source_size, hidden_size), InputProjection(target_size, hidden_size)

    def forward(self, source: Tensor, source_mask: Tensor, target: Tensor) -> Tensor:
        return (self.source(source) * source_mask[..., None] + self.target(target)).tanh()


class Translate(Task):
    """The next symbol of the target at every step."""

    def __init__(
        self, model: Pointwise, spec: PairSpec, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        self.head = nn.Linear(model.output_size, spec.target_size)

    @property
    def output_text(self) -> str:
        return f"{self.head.out_features} symbols"

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss()})

    def forward(self, source: Tensor, source_mask: Tensor, target: Tensor) -> Tensor:
        return self.head(self.model(source, source_mask, target))

    def predict(self, batch: PairBatch, state: object) -> Prediction:
        logits = self(batch.source, batch.source_mask, batch.inputs)
        nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        return Prediction(logits, nats.view_as(batch.targets) * batch.loss_mask, batch.loss_mask.sum())

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: PairBatch, prediction: Prediction) -> None:
        metrics["loss"].update(prediction.losses.double().sum(), prediction.terms)


class Sums(GeneratedData):
    """Floats; the target at every step is the mean of the floats up to it."""

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, seed, num_val=12, num_test=12)
        self.length = length

    @property
    def spec(self) -> Spec:
        return Spec(input_size=1, output_size=1, sequence_length=self.length, unit="numbers", symbols=False)

    def generate(self, key: tuple[int, ...], index: Tensor) -> Batch:
        x = random_integers(key, index, self.length, 1000)[..., None] / 1000
        mean = x.cumsum(1) / torch.arange(1, self.length + 1)[:, None]
        everything = torch.ones(x.shape[:2], dtype=torch.bool)
        return Batch(x, mean, everything, everything, everything[:, 0])


class Regression(Task):
    """Predicts one number at every step with any sequence model of the suite; the loss is the squared error."""

    def __init__(
        self, model: SequenceModel, spec: Spec, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None
    ) -> None:
        super().__init__(model, optimizer, scheduler)
        self.head = nn.Linear(model.output_size, spec.output_size)

    @property
    def output_text(self) -> str:
        return f"{self.head.out_features} number"

    def make_metrics(self) -> nn.ModuleDict:
        return nn.ModuleDict({"loss": Loss()})

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.model(x)[0])

    def predict(self, batch: Batch, state: object) -> Prediction:
        found = self(batch.inputs)
        return Prediction(found, (found - batch.targets) ** 2, batch.loss_mask.sum())

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Batch, prediction: Prediction) -> None:
        metrics["loss"].update(prediction.losses.double().sum(), prediction.terms)
