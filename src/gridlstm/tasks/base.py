"""LightningModule shared by all tasks: optimizer, noise, log rows and evaluation.

Predictions, losses and metrics belong to each task.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gridlstm.metrics import RatioOfSums
from gridlstm.models.base import Model, State
from gridlstm.schedules import Cosine
from gridlstm.tasks.carried_state import CarriedState
from gridlstm.tasks.log_rows import LogRows
from gridlstm.tasks.training_share import TrainingShare

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class Prediction(NamedTuple):
    """Result of a task for one batch."""

    outputs: Tensor
    """Outputs of the network, such as logits."""
    losses: Tensor
    """Loss of every term, such as a step of a sequence or an image, zero for excluded terms; their sum divided by
    ``terms`` is minimized."""
    terms: Tensor
    """Number of included terms, a scalar."""
    state: State = None
    """State for the next batch; None if there is none."""


class Task(L.LightningModule, ABC):
    """Network with its predictions, loss and metrics.

    The loss of a batch is the sum of its terms divided by their count, both over all ranks, so the number of processes
    does not change it.

    Subclasses build their head, and define ``forward``, ``predict``, ``make_metrics``, ``update_metrics`` and
    ``output_text``. This constructor calls ``make_metrics``, which therefore cannot use attributes that the subclass
    sets after ``super().__init__``.

    Args:
        model: the network.
        optimizer: function that builds the optimizer from the parameters.
        scheduler: function that builds the learning rate schedule from the optimizer, stepped once per optimizer step;
            None for a constant learning rate.
    """

    def __init__(self, model: Model, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        # The key "train" would hide nn.Module.train.
        self.metrics = nn.ModuleDict({stage: self.make_metrics() for stage in ("train_", "val_", "test_")})
        self.rows = LogRows(self, self._metrics("train"))
        self.share = TrainingShare()
        self.carried: CarriedState | None = None
        """State carried from batch to batch; None if every batch starts from a fresh state."""
        self._checkpoint_step: int | None = None

    @abstractmethod
    def predict(self, batch: Any, state: State) -> Prediction:
        """Return the predictions for a batch, given the state before it."""

    @abstractmethod
    def make_metrics(self) -> nn.ModuleDict:
        """Return new metrics by name, among them "loss"."""

    @abstractmethod
    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Any, prediction: Prediction) -> None:
        """Add one batch to the metrics."""

    @property
    @abstractmethod
    def output_text(self) -> str:
        """Description of the outputs, such as "65 classes"."""

    @property
    def state_size(self) -> int:
        """Number of values that one row carries from step to step."""
        return 0

    @property
    def guessing_loss(self) -> float:
        """Loss of uniform guessing; 0 if unknown."""
        return 0.0

    def on_fit_start(self) -> None:
        self._noise_seed = torch.initial_seed()

    def on_train_start(self) -> None:
        """Set the learning rate of this run's schedule, because a resumed run may have a later end."""
        self.share.look_at_clock(self.trainer)
        for optimizer, config in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=False):
            if isinstance(schedule := config.scheduler, Cosine):
                schedule.progress = self.progress
                for group, lr in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
                    group["lr"] = lr

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout is a function of (seed, rank, batch), so that a resumed run draws the same numbers.
        origin = (self._noise_seed, self.global_rank, self.trainer.fit_loop.total_batch_idx)
        seed = int(np.random.SeedSequence(origin).generate_state(1, np.uint64)[0])
        # torch.manual_seed records a traceback for every absent kind of device, which takes a quarter of a millisecond.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        self.share.look_at_clock(self.trainer)
        self.model.set_progress(self.progress)

    @property
    def progress(self) -> float:
        """Share of the training that is done, see ``TrainingShare``."""
        return self.share.at(self.trainer)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if isinstance(scheduler, Cosine):
            scheduler.progress = self.progress
        super().lr_scheduler_step(scheduler, metric)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        before = None if self.carried is None else self.carried.before(batch.reset, self.trainer)
        prediction = self.predict(batch, before)
        if self.carried is not None:
            self.carried.training = prediction.state
        with torch.no_grad():
            self.update_metrics(self._metrics("train"), batch, prediction)
        terms = prediction.terms.clone()
        if self.trainer.world_size > 1:
            # Lightning's reduce would first wait for all ranks, which stops a GPU between the passes.
            torch.distributed.all_reduce(terms)
        # DDP averages the gradients of the ranks. The factor of the number of ranks turns the mean into the sum.
        return prediction.losses.sum() / terms * self.trainer.world_size

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows.write_training(self.samples_seen)

    def training_loss(self) -> float:
        """Return the mean training loss since the last log row."""
        return float(self._metrics("train")["loss"].compute())

    def on_validation_epoch_start(self) -> None:
        # Lightning keeps every value until a new one is logged, but this validation may not compute all metrics.
        for name in self.logged("val/"):
            del self.trainer.callback_metrics[name]
        if self.carried is not None:
            self.carried.evaluation = None

    def on_test_epoch_start(self) -> None:
        if self.carried is not None:
            self.carried.evaluation = None

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.rows.write(self.logged("val/") | {"samples": self.samples_seen}, self.global_step)

    def on_test_end(self) -> None:
        # The row belongs to the step that wrote the weights, not to the last step.
        self.rows.write(
            self.logged("test/"), self.global_step if self._checkpoint_step is None else self._checkpoint_step
        )

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics without the prefix of a stage."""
        return list(self._metrics("val"))

    def higher_is_better(self, name: str) -> bool | None:
        """Return True if higher values of this metric are better, False if lower ones are, None if it is unknown."""
        return self._metrics("val")[name].higher_is_better

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer: Any = self.make_optimizer(self.parameters())
        # A fused step could also undo the scaling of float16 gradients, so Lightning refuses to clip before it. Told
        # that the step cannot, Lightning undoes the scaling itself, then clips.
        optimizer._step_supports_amp_scaling = False
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    @property
    def samples_seen(self) -> int:
        """Rows of global training batches so far; windows for text."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, missing from its annotations
        return int(data.batches_seen * data.batch_size)

    def logged(self, prefix: str) -> dict[str, float]:
        """Return the latest metrics of one stage, such as "val/"."""
        return {name: float(v) for name, v in self.trainer.callback_metrics.items() if name.startswith(prefix)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.carried is not None and (leaves := self.carried.save(self.trainer)) is not None:
            checkpoint["carried_state"] = leaves
        checkpoint["training_sums"] = self.rows.save()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        step = self._checkpoint_step = int(checkpoint["global_step"])
        self.rows.restore(checkpoint.get("training_sums", {}), step)
        if self.carried is not None:
            self.carried.restore(checkpoint.get("carried_state"))

    def _metrics(self, stage: str) -> dict[str, RatioOfSums]:
        return self.metrics[f"{stage}_"]  # type: ignore[return-value]  # a ModuleDict is not typed by its content

    def _evaluate(self, batch: Any, stage: str) -> dict[str, Any]:
        """Add a batch to the metrics of a stage, and return the fields of its ``Prediction``, for callbacks."""
        prediction = self.predict(batch, None if self.carried is None else self.carried.evaluation)
        if self.carried is not None:
            self.carried.evaluation = prediction.state
        self.update_metrics(self._metrics(stage), batch, prediction)
        return prediction._asdict()

    def _log_metrics(self, stage: str) -> None:
        # Log at the end and not at every batch: all ranks must log together, and a rank may have no batch.
        for name, metric in self._metrics(stage).items():
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, logger=False)
