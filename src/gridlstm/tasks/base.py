"""The only LightningModule plumbing: loss, metrics, the carried state, optimiser wiring, and the names of the log.

Shape legend: B batch rows, T time steps, C classes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from gridlstm.data.base import Batch, Spec, owned_rows
from gridlstm.errors import UserError
from gridlstm.grid import Grid
from gridlstm.metrics import RatioOfSums
from gridlstm.models.base import SequenceModel, State, start_weights_within
from gridlstm.schedules import Cosine

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class SequenceTask(L.LightningModule):
    """Predicts a class at every step: model, linear read-out, cross-entropy.

    The loss of a batch is its summed nats over its count of symbols, both over all ranks, so the number of processes
    changes nothing.

    Subclasses name the metrics and update them.

    Args:
        model: the network.
        spec: of the data.
        optimizer: called with the parameters.
        scheduler: called with the optimizer, stepped once an optimiser step; None for a constant learning rate.
        carry_state: keep the recurrent state from batch to batch, without its gradient, where ``Batch.reset`` allows:
            truncated backpropagation through time. Otherwise every batch starts afresh.
    """

    def __init__(
        self,
        model: SequenceModel,
        spec: Spec,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        carry_state: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.output_size, spec.output_size)
        if model.init_bound is not None:
            start_weights_within(self.head, model.init_bound)
            nn.init.uniform_(self.head.bias, -model.init_bound, model.init_bound)
        self.temperature = 1.0
        """Divides the logits: of a trained network, what is best on the validation split."""
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.carry_state = carry_state
        # "train" itself would hide nn.Module.train.
        self.metrics = nn.ModuleDict({stage: self.make_metrics() for stage in ("train_", "val_", "test_")})
        self.latest: dict[str, float] = {}
        """The training metrics logged last, for the progress bar."""
        self._clock = 0.0
        """The share of the training's time that was spent before this batch."""
        self._logged_step = 0
        self._checkpoint_step: int | None = None
        self._state: State = None
        self._evaluation_state: State = None
        self._restored: list[Tensor] | None = None

    def make_metrics(self) -> nn.ModuleDict:
        """Fresh metrics, by the name they are logged under; "loss" among them."""
        raise NotImplementedError(f"{type(self).__name__} must define make_metrics")

    def update_metrics(self, metrics: dict[str, RatioOfSums], batch: Batch, logits: Tensor, nats: Tensor) -> None:
        """Adds one batch: logits (B, T, C), nats (B, T) of each target, zero outside ``loss_mask``."""
        raise NotImplementedError(f"{type(self).__name__} must define update_metrics")

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """(B, T) symbols -> (B, T, C) logits, and the state after the last step."""
        y, state = self.model(x, state)
        return self.head(y), state

    def on_fit_start(self) -> None:
        self._noise_seed = torch.initial_seed()

    def on_train_start(self) -> None:
        """Begin with the learning rate of here: a run that is resumed may have been given a later end than it had."""
        self._clock = self._time_spent()
        for optimizer, config in zip(self.trainer.optimizers, self.trainer.lr_scheduler_configs, strict=False):
            if isinstance(schedule := config.scheduler, Cosine):
                schedule.progress = self.progress
                for group, lr in zip(optimizer.param_groups, schedule.get_lr(), strict=True):
                    group["lr"] = lr

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is a function of (seed, rank, batch), so that a run that goes on draws what it would have drawn.
        origin = (self._noise_seed, self.global_rank, self.trainer.fit_loop.total_batch_idx)
        seed = int(np.random.SeedSequence(origin).generate_state(1, np.uint64)[0])
        # torch.manual_seed notes a traceback for every kind of device that is not there: a quarter of a millisecond.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)
        self._clock = self._time_spent()
        progress = self.progress
        for module in self.model.modules():
            if isinstance(module, Grid):
                module.progress = progress

    @property
    def progress(self) -> float:
        """The share of the training that is done, by steps or by the clock, whichever is further; 0 without an end."""
        steps = self.global_step / self.trainer.max_steps if self.trainer.max_steps > 0 else 0.0
        return min(1.0, max(steps, self._clock))

    def _time_spent(self) -> float:
        """The share of the training's time, if that is limited; of several ranks the furthest."""
        shares = []
        for timer in self.trainer.callbacks:  # type: ignore[attr-defined]  # set, but not annotated
            if isinstance(timer, Timer) and (remaining := timer.time_remaining()) is not None:
                elapsed = timer.time_elapsed()
                shares.append(elapsed / (elapsed + remaining))
        spent = max(shares, default=0.0)
        if shares and self.trainer.world_size > 1:  # a single process need not wait for its device
            of_all = torch.tensor(spent, device=self.device, dtype=torch.float64)
            spent = float(self.trainer.strategy.reduce(of_all, reduce_op="max"))
        return spent

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if isinstance(scheduler, Cosine):
            scheduler.progress = self.progress
        super().lr_scheduler_step(scheduler, metric)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits, nats, self._state = self._step(batch, self._training_state(len(batch.reset)))
        with torch.no_grad():
            self.update_metrics(self._metrics("train"), batch, logits, nats)
        count = self.trainer.strategy.reduce(batch.loss_mask.sum(), reduce_op="sum")
        # DDP averages the ranks' gradients: scaled by the number of ranks, the mean is the sum.
        return nats.sum() / count * self.trainer.world_size

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.log_training_row()

    def row_is_due(self) -> bool:
        """Whether this step ends with a row of the log that is not written yet."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set, but not annotated
        # With accumulated gradients several batches end at one step: its row is written after the last of them.
        return self.global_step % every == 0 and self.global_step != self._logged_step

    def training_loss(self) -> float:
        """The mean of the training loss since the last row."""
        return float(self._metrics("train")["loss"].compute())

    def row_has_begun(self) -> bool:
        """Whether anything has been trained on since the last row."""
        return self._metrics("train")["loss"].update_called

    def log_training_row(self) -> None:
        """Writes the row of this step where one is due."""
        if not self.row_is_due():
            return
        self._logged_step = self.global_step
        values = {f"train/{name}": float(metric.compute()) for name, metric in self._metrics("train").items()}
        for metric in self._metrics("train").values():
            metric.reset()
        self.latest = values
        self._log_row(
            values | {"lr": self.trainer.optimizers[0].param_groups[0]["lr"], "samples": self.samples_seen},
            self.global_step,
        )

    def on_validation_epoch_start(self) -> None:
        self._evaluation_state = None

    def on_test_epoch_start(self) -> None:
        self._evaluation_state = None

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._log_row(self.logged("val/") | {"samples": self.samples_seen}, self.global_step)

    def on_test_end(self) -> None:
        # The row of the step that wrote the weights, which is not the last one's.
        self._log_row(
            self.logged("test/"), self.global_step if self._checkpoint_step is None else self._checkpoint_step
        )

    @property
    def metric_names(self) -> list[str]:
        """What is measured, without the prefix of a stage."""
        return list(self._metrics("val"))

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    @property
    def samples_seen(self) -> int:
        """Rows of global training batches so far; for text, windows."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit, missing from its annotations
        return int(data.batches_seen * data.batch_size)

    def logged(self, prefix: str) -> dict[str, float]:
        """The latest metrics of one stage, such as "val/"."""
        return {name: float(v) for name, v in self.trainer.callback_metrics.items() if name.startswith(prefix)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._state is not None:
            # Every rank takes part in saving; the checkpoint holds the rows of all of them, in order.
            leaves = [leaf.cpu() for leaf in tree_flatten(self._state)[0]]
            checkpoint["carried_state"] = self._gather_rows(leaves)
        reduce = self.trainer.strategy.reduce  # in place
        checkpoint["training_sums"] = {
            name: [reduce(part.clone(), reduce_op="sum").item() for part in (metric.total, metric.count)]
            for name, metric in self._metrics("train").items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, (total, count) in checkpoint.get("training_sums", {}).items():
            if self.global_rank == 0:  # the row that was begun goes on
                self._metrics("train")[name].update(total, count)
        self._restored = checkpoint.get("carried_state")
        self._checkpoint_step = self._logged_step = int(checkpoint["global_step"])

    def _gather_rows(self, leaves: list[Tensor]) -> list[Tensor]:
        if self.trainer.world_size == 1:
            return leaves
        ranks: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(ranks, leaves)
        return [torch.cat(parts, dim=1) for parts in zip(*ranks, strict=True)]

    def _training_state(self, rows: int) -> State:
        if self._restored is not None and self.carry_state:
            everyone = self._restored[0].shape[1]
            owned = owned_rows(everyone, self.trainer.global_rank, self.trainer.world_size)
            fresh, structure = tree_flatten(self.model.initial_state(rows))
            if [leaf.shape for leaf in fresh] != [leaf[:, owned.start : owned.stop].shape for leaf in self._restored]:
                raise UserError(
                    f"the checkpoint carries the state of {everyone} rows and cannot go on with another model or "
                    f"batch size: resume with the configuration of the run that wrote it."
                )
            pairs = zip(self._restored, fresh, strict=True)
            state = [old[:, owned.start : owned.stop].to(new) for old, new in pairs]
            self._state = tree_unflatten(state, structure)
        self._restored = None
        return self._state

    def _metrics(self, stage: str) -> dict[str, RatioOfSums]:
        return self.metrics[f"{stage}_"]  # type: ignore[return-value]  # a ModuleDict is not typed by its content

    def _step(self, batch: Batch, state: State) -> tuple[Tensor, Tensor, State]:
        """(logits (B, T, C), nats (B, T), state to carry)"""
        if not self.carry_state:
            state = None
        elif state is not None:
            state = self._reset_rows(state, batch.reset)
        logits, state = self(batch.inputs, state)
        logits = logits / self.temperature if self.temperature != 1 else logits
        nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        nats = nats.view_as(batch.targets) * batch.loss_mask
        return logits, nats, tree_map(torch.Tensor.detach, state) if self.carry_state else None

    def _reset_rows(self, state: State, reset: Tensor) -> State:
        """The state with the initial one in the rows where ``reset`` (B,) is true; their number may change with it."""

        def choose(old: Tensor, new: Tensor) -> Tensor:
            if old.shape != new.shape:  # the last group of streams may be smaller, and starts afresh
                return new
            return torch.where(reset.view(1, -1, *[1] * (old.dim() - 2)), new, old)

        return tree_map(choose, state, self.model.initial_state(len(reset)))

    def _evaluate(self, batch: Batch, stage: str) -> Tensor:
        """The nats (B, T) of each target."""
        logits, nats, self._evaluation_state = self._step(batch, self._evaluation_state)
        self.update_metrics(self._metrics(stage), batch, logits, nats)
        return nats

    def _log_metrics(self, stage: str) -> None:
        # Here and not at every batch: all ranks must log them, and one may have had no batch at all.
        for name, metric in self._metrics(stage).items():
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, logger=False)

    def _log_row(self, values: dict[str, float], step: int) -> None:
        """One row for every logger; Lightning's own path would log without the samples seen."""
        for logger in self.loggers:
            logger.log_metrics(values, step=step)
