"""The one place where configuration becomes objects: the wiring diagram of a run."""

import inspect
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, cast, get_args, get_origin

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ExponentialLR

from gridlstm.data.base import SequenceData
from gridlstm.data.spec import DataSpec, Spec
from gridlstm.errors import UserError
from gridlstm.schedules import Cosine
from gridlstm.tasks.base import Task
from gridlstm.tasks.ensemble import Ensemble
from gridlstm.tasks.sequence import SequenceTask
from gridlstm.training.atomic_checkpoints import AtomicCheckpointIO
from gridlstm.training.callbacks.clock import Clock
from gridlstm.training.option_names import options_named, refusal
from gridlstm.training.task_models import annotations

# torch 2.14 has renamed it.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


OF_EVERY_TRAINER: dict[str, Any] = {
    # The training data has no epochs, and validations are counted in its batches.
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "limit_train_batches": None,
    # Data modules divide the global batch over the ranks: Lightning's sampler would reshuffle ordered streams.
    "use_distributed_sampler": False,
}
"""Options that no configuration changes."""


class Run(NamedTuple):
    """What a run is made of."""

    data: SequenceData
    task: Task
    trainer: L.Trainer


def build(
    cfg: DictConfig,
    state: dict[str, Any] | None = None,
    whole_text: bool = False,
    members: Sequence[DictConfig] = (),
) -> Run:
    """Build data, task and trainer from a configuration.

    Sizes flow in Python: the data knows its symbols, the model is made for them, the task joins both.

    Args:
        state: what a checkpoint's data left in it, such as the symbols that its network knows, for a run that is only
            evaluated.
        whole_text: test on all of a text, not on its last part.
        members: configurations of the networks of an ensemble, which then is the task; () for the one of ``cfg``.

    Raises:
        UserError: a component refused its options, or the data is not what the checkpoint was trained on.
    """
    data = make_data(cfg, state, whole_text)
    _check_sizes(data, data.spec)
    _check_shares(cfg, data)
    task: Task
    if members:
        spec = cast(Spec, data.spec)  # as the members need
        task = Ensemble([make_sequence_task(_with_epochs(member, data), spec) for member in members], spec)
    else:
        task = make_task(_with_epochs(cfg, data), data.spec)
    max_time = cfg.trainer.get("max_time")  # which what is only measured has not
    clock = [Clock(max_time)] if max_time is not None else []
    trainer: L.Trainer = _make(cfg, "trainer")(
        **_accelerator(cfg.trainer.accelerator),
        # A node set to null is left out: callbacks.learning_curve=null.
        callbacks=[_make(cfg, f"callbacks.{name}")() for name in _callbacks(cfg)] + clock,
        max_time=None,
        **OF_EVERY_TRAINER,
        logger=[_make(cfg, f"logger.{name}")() for name, node in (cfg.logger or {}).items() if node],
        plugins=AtomicCheckpointIO(),
    )
    # Lightning would do so only after it has loaded a checkpoint, and round its float64 weights to float32 on the way.
    trainer.precision_plugin.convert_module(task)
    if isinstance(trainer.strategy, DDPStrategy):
        # Buffers here are constants. To send them round at every forward pass, as DDP would, also makes a rank wait for
        # one that has fewer validation batches, for ever. The public option is out of reach once strategy=auto has
        # chosen.
        trainer.strategy._ddp_kwargs[_SYNC_BUFFERS] = False
    with options_named(cfg, "task.data"):
        data.check_processes(trainer.world_size)
    return Run(data, task, trainer)


def _accelerator(asked: str) -> dict[str, str]:
    """On a Mac, the CPU for "auto": its GPU has no float64, in which metrics are summed.

    Raises:
        UserError: that GPU was asked for.
    """
    if asked == "cpu" or not torch.backends.mps.is_available():
        return {}
    if asked != "auto":
        raise UserError(
            f"trainer.accelerator={asked} is no choice here: a Mac's GPU has no float64. Give hardware=cpu."
        )
    return {"accelerator": "cpu"}


def make_data(cfg: DictConfig, state: dict[str, Any] | None = None, whole_text: bool = False) -> SequenceData:
    """Return the data of a run, found or downloaded, and read; for the arguments see ``build``.

    Raises:
        UserError: it refuses its options, or the state is of other data.
    """
    data = unread_data(cfg)
    _check_limits(cfg, data)
    if whole_text:
        try:
            data.test_on_all()
        except ValueError as error:
            raise UserError(f"split=all is for texts, {error}: give split=val or split=test.") from error
    with options_named(cfg, "task.data"):
        data.prepare_data()
        if state is not None:
            _load_state(data, state)
        data.setup("fit" if state is None else "test")
    return data


def unread_data(cfg: DictConfig) -> SequenceData:
    """Return the data module of a run, which has read nothing yet.

    Raises:
        UserError: it refuses its options.
    """
    data: SequenceData = _make(cfg, "task.data")()
    return data


def _load_state(data: SequenceData, state: dict[str, Any]) -> None:
    try:
        data.load_state_dict(state)
    except KeyError as error:
        raise UserError(
            f"the checkpoint holds no {error} of the run's data: it is of another task than the config.yaml above it. "
            f"Give one that the same run wrote."
        ) from error


def make_task(cfg: DictConfig, spec: DataSpec) -> Task:
    """The network of a run inside its task."""
    task: Task = _make(cfg, "task.objective")(
        model=_make(cfg, "model")(**spec.model_options),
        spec=spec,
        optimizer=_make(cfg, "optimizer"),
        scheduler=_make(cfg, "scheduler") if cfg.scheduler else None,
    )
    return task


def make_sequence_task(cfg: DictConfig, spec: DataSpec) -> SequenceTask:
    """Return ``make_task`` for what is done with sequences alone.

    Raises:
        UserError: the task is of another kind.
    """
    task = make_task(cfg, spec)
    if not isinstance(task, SequenceTask):
        raise UserError(f"expected a task with a class at every step of a sequence, got task={cfg.run.task}.")
    return task


MOST = 2**27
"""Symbols of one batch, and different symbols, beyond which no machine has the memory for a network's numbers."""


def _check_sizes(data: SequenceData, spec: DataSpec) -> None:
    """Refuse in a sentence what would otherwise end in an overflow, or in the kernel's killing the process.

    Raises:
        UserError: a batch of more than ``MOST`` symbols, or as many different ones.
    """
    rows = data.batch_size
    if rows * spec.row_size > MOST or spec.widest > MOST:
        raise UserError(
            f"task: {rows:,} rows of {spec.row_size:,} symbols or numbers, of up to {spec.widest:,} different inputs "
            f"or outputs, are beyond the memory of any machine. Choose smaller sizes."
        )


def _check_limits(cfg: DictConfig, data: SequenceData) -> None:
    for name in ("limit_val_batches", "limit_test_batches"):
        limit = cfg.trainer.get(name)
        if not data.counts_batches and type(limit) is float and limit != 1:
            raise UserError(
                f"trainer.{name} must be a whole number of batches here, or 1.0 for all, got {limit}: a text is read "
                f"without counting its batches first."
            )


def _check_shares(cfg: DictConfig, data: SequenceData) -> None:
    """Raise UserError for a share of the batches that is less than one; Lightning finds it after the training."""
    for name, loader in (("val", data.val_dataloader), ("test", data.test_dataloader)):
        limit = cfg.trainer.get(f"limit_{name}_batches")
        if type(limit) is float and 0 < limit < 1 and int(limit * (batches := len(loader()))) == 0:
            raise UserError(
                f"trainer.limit_{name}_batches={limit} of {batches} batches is less than one: give a whole number of "
                f"batches, or a larger share."
            )


def check_task(cfg: DictConfig) -> None:
    """Build the data module, which reads nothing yet, and the task with its network, of sizes alone.

    Raises:
        UserError: one of them refuses its options, there is no such text, or the task no such metric.
    """
    data = unread_data(cfg)
    _check_limits(cfg, data)
    with options_named(cfg, "task.data"):
        data.check()
    if (spec := data.expected_spec) is None:
        return
    _check_sizes(data, spec)
    if data.counts_batches:
        _check_shares(cfg, data)
        _check_schedule(_with_epochs(cfg, data))
    ours = str(cfg.model.get("_target_")).startswith("gridlstm.")  # others may want numbers in their weights
    if not ours or cfg.match.parameters_to or cfg.match.flops_to:
        return
    try:
        with torch.device("meta"):
            task = make_task(cfg, spec)
    except RuntimeError:
        return  # beyond all memory, of which the run says more
    check_monitors(cfg, task)


def check_monitors(cfg: DictConfig, task: Task) -> None:
    """Raises UserError where what is monitored is no metric of the task's."""
    names = [f"val/{name}" for name in task.metric_names]
    monitors = {
        f"callbacks.{name}.monitor": node.get("monitor") for name, node in (cfg.callbacks or {}).items() if node
    }
    for option, monitor in {"task.monitor": cfg.task.monitor, **monitors}.items():
        if monitor not in names and (monitor is not None or option == "task.monitor"):
            raise UserError(f"{option} must be one of {', '.join(names)}, got {monitor!r}.")


def check_callbacks(cfg: DictConfig) -> None:
    """Builds the callbacks, which do nothing yet.

    Raises:
        UserError: one of them refuses its options.
    """
    if cfg.run.dir is None:  # of a sweep whose jobs have not begun
        cfg = cfg.copy()
        cfg.run.dir = "."
    for name in _callbacks(cfg):
        _make(cfg, f"callbacks.{name}")()


def _callbacks(cfg: DictConfig) -> list[str]:
    """The names of those that are in use."""
    unused = () if cfg.trainer.get("enable_progress_bar", True) else ("progress",)
    return [name for name, node in (cfg.callbacks or {}).items() if node and name not in unused]


def check_optimizer(cfg: DictConfig) -> None:
    """Builds the optimiser and the schedule for a parameter that nobody needs.

    Raises:
        UserError: one of them refuses its options, or the learning rate trains nothing.
    """
    optimizer = _make(cfg, "optimizer")([torch.zeros(1)])
    if optimizer.defaults.get("lr") == 0:
        raise UserError("optimizer.lr must be above 0, got 0: nothing would be trained.")
    eps = optimizer.defaults.get("eps")
    if cfg.trainer.precision == "16-true" and isinstance(eps, float) and torch.tensor(eps).half() == 0:
        raise UserError(
            f"optimizer.eps={eps} is 0 in trainer.precision=16-true, and steps would be divided by it: give "
            f"optimizer.eps=1e-4, or trainer.precision=bf16-true."
        )
    if cfg.scheduler and cfg.scheduler.get("steps_per_epoch", 0) is None:  # which the data will fill in
        cfg = cfg.copy()
        cfg.scheduler.steps_per_epoch = 1
    _check_schedule(cfg)


def _check_schedule(cfg: DictConfig) -> None:
    if cfg.scheduler:
        schedule = _make(cfg, "scheduler")(_make(cfg, "optimizer")([torch.zeros(1)]))
        if isinstance(schedule, ExponentialLR) and not 0 < schedule.gamma < math.inf:
            raise UserError(f"scheduler.gamma must be above 0, got {schedule.gamma}.")
        if isinstance(schedule, Cosine) and cfg.trainer.max_steps < 1 and cfg.trainer.max_time is None:
            raise UserError(
                "this schedule spans the training, which has no end: give trainer.max_steps or trainer.max_time."
            )


def _with_epochs(cfg: DictConfig, data: SequenceData) -> DictConfig:
    """The configuration with the data's epoch, counted in steps, where a schedule asks for it."""
    if not cfg.scheduler or cfg.scheduler.get("steps_per_epoch", 0) is not None or data.batches_per_epoch is None:
        return cfg
    cfg = cfg.copy()
    cfg.scheduler.steps_per_epoch = data.batches_per_epoch / cfg.trainer.accumulate_grad_batches
    return cfg


def check_types(node: DictConfig, path: str) -> None:
    """Refuses values of another type than the component's signature names: a truthy 3 is no ``tied: bool``.

    Only plain values are checked: true and false, numbers, text and null.

    Raises:
        UserError: with the path of the option.
    """
    for name, value in node.items():
        if isinstance(value, DictConfig):
            check_types(value, f"{path}.{name!s}")
    if "_target_" not in node:
        return
    try:
        target = get_object(node._target_)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}._target_={node._target_} cannot be read: {' '.join(str(error).split())}") from error
    hints = annotations(target)
    accepted = inspect.signature(target).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
        names = [parameter.name for parameter in accepted]
        if unknown := [name for name in node if not str(name).startswith("_") and name not in names]:
            raise UserError(f"{path}.{unknown[0]!s} does not exist: {node._target_} has {', '.join(names)}.")
    for name, value in node.items():
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and path.startswith("model"))):
            raise UserError(f"{path}.{name!s} must be a number, got {value}.")
        kinds = _kinds(hints.get(str(name)))
        if not kinds or type(value) in kinds or isinstance(value, DictConfig):
            continue
        if isinstance(value, ListConfig):
            _check_elements(value, hints[str(name)], f"{path}.{name!s}")
        if isinstance(value, ListConfig) and not set(kinds) <= _KIND_NAMES.keys() - _LISTS:
            continue
        if not (type(value) is int and float in kinds) and not (type(value) is str and Path in kinds):
            expected = " or ".join(_KIND_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise UserError(f"{path}.{name!s} must be {expected}, got {value!r}.")


def _check_elements(values: ListConfig, hint: Any, path: str) -> None:
    """Of a list of objects, such as ``Sequence[Regularizer]``: each must be a node that makes one."""
    (kind, *_) = get_args(hint) or (None,)
    objects = isinstance(kind, type) and kind not in _KIND_NAMES
    for number, value in enumerate(values):
        if isinstance(value, DictConfig) and "_target_" in value:
            check_types(value, f"{path}[{number}]")
        elif objects:
            raise UserError(f"{path} must be a list of nodes such as {{_target_: …}}, got {value!r} in it.")


_LISTS: set[type] = {Sequence, list, tuple}

_KIND_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    **dict.fromkeys(_LISTS, "a list"),
    type(None): "null",
}


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes of an annotation; () where it allows anything, or something that is no class."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds: list[Any] = []
    for part in parts:
        kinds += map(type, get_args(part)) if get_origin(part) is Literal else [get_origin(part) or part]
    return tuple(dict.fromkeys(kinds)) if all(isinstance(kind, type) for kind in kinds) else ()


def _make(cfg: DictConfig, path: str) -> Any:
    """The callable that a ``_target_`` node describes, its options bound; nested nodes are objects already."""
    node: Any = cfg
    for name in path.split("."):
        node = node[name]
    check_types(node, path)
    try:
        make = instantiate(node, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise UserError(_reason(error, cfg, path)) from error

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except (TypeError, ValueError, LookupError, ArithmeticError, ImportError, MisconfigurationException) as error:
            # A constructor refuses its options, or says which package it needs, in one of these ways.
            raise UserError(refusal(error, cfg, path)) from error

    return call


def _reason(error: InstantiationException, cfg: DictConfig, path: str) -> str:
    """Return what went wrong inside Hydra's wrapping: what the node at fault refuses, or Hydra's own message."""
    node = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
    cause = error.__cause__
    return refusal(cause, cfg, node[1]) if node and isinstance(cause, ValueError) else f"{path}: {error}"
