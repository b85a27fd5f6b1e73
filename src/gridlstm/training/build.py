"""Build a run from its configuration: the only module that turns configuration nodes into objects."""

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
from gridlstm.data.spec import DataSpec, PairSpec, Spec
from gridlstm.errors import UserError
from gridlstm.schedules import Cosine
from gridlstm.tasks.base import Task
from gridlstm.tasks.ensemble import Ensemble, TranslateTogether
from gridlstm.tasks.sequence import SequenceTask
from gridlstm.tasks.translate import Translate
from gridlstm.training.atomic_checkpoints import AtomicCheckpointIO
from gridlstm.training.callbacks.clock import Clock
from gridlstm.training.option_names import options_named, refusal
from gridlstm.training.task_models import annotations

# torch 2.14 renamed this argument.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


OF_EVERY_TRAINER: dict[str, Any] = {
    # The training data has no epochs. Validation intervals are counted in batches.
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "limit_train_batches": None,
    # Data modules divide the global batch over the ranks. Lightning's sampler would reshuffle ordered streams.
    "use_distributed_sampler": False,
}
"""Trainer arguments that are the same in every run and that no configuration may set."""


class Run(NamedTuple):
    """Objects of one run."""

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

    Sizes are computed in Python: the data gives the number of symbols, the model is built for it, the task joins both.

    Args:
        cfg: configuration of the run.
        state: state that the data saved in a checkpoint, such as its symbols. Given only for evaluation.
        whole_text: test on the whole text instead of its last part.
        members: configurations of the networks of an ensemble, which becomes the task; () for the network of ``cfg``.

    Raises:
        UserError: a component refuses its options, or the data differs from the data of the checkpoint.
    """
    data = make_data(cfg, state, whole_text)
    _check_sizes(data, data.spec)
    _check_shares(cfg, data)
    task: Task
    if members and isinstance(data.spec, PairSpec):
        translators = [cast(Translate, make_task(_with_epochs(member, data), data.spec)) for member in members]
        task = TranslateTogether(translators, data.spec)
    elif members:
        spec = cast(Spec, data.spec)  # the members need sequences of symbols
        networks = [make_sequence_task(_with_epochs(member, data), spec) for member in members]
        task = Ensemble(networks, spec, cfg.task.objective.get("temperature", 1.0))
    else:
        task = make_task(_with_epochs(cfg, data), data.spec)
    max_time = cfg.trainer.get("max_time")  # absent if the run is only evaluated
    clock = [Clock(max_time)] if max_time is not None else []
    trainer: L.Trainer = _make(cfg, "trainer")(
        **_accelerator(cfg.trainer.accelerator),
        # A node set to null is left out, such as callbacks.learning_curve=null.
        callbacks=[_make(cfg, f"callbacks.{name}")() for name in _callbacks(cfg)] + clock,
        max_time=None,
        **OF_EVERY_TRAINER,
        logger=[_make(cfg, f"logger.{name}")() for name, node in (cfg.logger or {}).items() if node],
        plugins=AtomicCheckpointIO(),
    )
    # Lightning converts only after it has loaded a checkpoint, which rounds float64 weights to float32 first.
    trainer.precision_plugin.convert_module(task)
    if isinstance(trainer.strategy, DDPStrategy):
        # Buffers are constants here. DDP would broadcast them at every forward pass, and a rank would wait forever for
        # one with fewer validation batches. The public option cannot be set once strategy=auto has chosen DDP.
        trainer.strategy._ddp_kwargs[_SYNC_BUFFERS] = False
    with options_named(cfg, "task.data"):
        data.check_processes(trainer.world_size)
    return Run(data, task, trainer)


def _accelerator(asked: str) -> dict[str, str]:
    """Return the accelerator argument: on a Mac the CPU for "auto", because metrics are summed in float64.

    Raises:
        UserError: the configuration asks for the GPU of a Mac, which has no float64.
    """
    if asked == "cpu" or not torch.backends.mps.is_available():
        return {}
    if asked != "auto":
        raise UserError(
            f"trainer.accelerator={asked} does not work here: the GPU of a Mac has no float64. Use hardware=cpu."
        )
    return {"accelerator": "cpu"}


def make_data(cfg: DictConfig, state: dict[str, Any] | None = None, whole_text: bool = False) -> SequenceData:
    """Find or download the data of a run, read it and return it; see ``build`` for the arguments.

    Raises:
        UserError: the data refuses its options, or the state belongs to other data.
    """
    data = unread_data(cfg)
    _check_limits(cfg, data)
    if whole_text:
        try:
            data.test_on_all()
        except ValueError as error:
            raise UserError(f"split=all works for texts only, {error}. Use split=val or split=test.") from error
    with options_named(cfg, "task.data"):
        data.prepare_data()
        if state is not None:
            _load_state(data, state)
        data.setup("fit" if state is None else "test")
    return data


def unread_data(cfg: DictConfig) -> SequenceData:
    """Return the data module of a run before it reads anything.

    Raises:
        UserError: the data module refuses its options.
    """
    data: SequenceData = _make(cfg, "task.data")()
    return data


def _load_state(data: SequenceData, state: dict[str, Any]) -> None:
    try:
        data.load_state_dict(state)
    except KeyError as error:
        raise UserError(
            f"the checkpoint holds no {error} for the data of this run: it belongs to another task than the "
            f"config.yaml of its run directory. Use a checkpoint that the same run wrote."
        ) from error


def make_task(cfg: DictConfig, spec: DataSpec) -> Task:
    """Build the model and return it inside its task."""
    task: Task = _make(cfg, "task.objective")(
        model=_make(cfg, "model")(**spec.model_options),
        spec=spec,
        optimizer=_make(cfg, "optimizer"),
        scheduler=_make(cfg, "scheduler") if cfg.scheduler else None,
    )
    return task


def make_sequence_task(cfg: DictConfig, spec: DataSpec) -> SequenceTask:
    """Build the task as ``make_task`` does, and check that it is a task on sequences.

    Raises:
        UserError: the task does not predict a class at each step of a sequence.
    """
    task = make_task(cfg, spec)
    if not isinstance(task, SequenceTask):
        raise UserError(f"expected a task that predicts a class at each step of a sequence, got task={cfg.run.task}.")
    return task


MOST = 2**27
"""Largest number of symbols in one batch, and of distinct symbols; no machine has memory for a network beyond it."""


def _check_sizes(data: SequenceData, spec: DataSpec) -> None:
    """Refuse sizes that would overflow or make the kernel kill the process.

    Raises:
        UserError: a batch has more than ``MOST`` symbols, or there are more than ``MOST`` distinct symbols.
    """
    rows = data.batch_size
    if rows * spec.row_size > MOST or spec.widest > MOST:
        raise UserError(
            f"task: {rows:,} rows of {spec.row_size:,} symbols or numbers, with up to {spec.widest:,} distinct inputs "
            f"or outputs, do not fit into the memory of any machine. Choose smaller sizes."
        )


def _check_limits(cfg: DictConfig, data: SequenceData) -> None:
    for name in ("limit_val_batches", "limit_test_batches"):
        limit = cfg.trainer.get(name)
        if not data.counts_batches and type(limit) is float and limit != 1:
            raise UserError(
                f"trainer.{name} must be a whole number of batches, or 1.0 for all, got {limit}: the batches of a text "
                f"are not counted before it is read."
            )


def _check_shares(cfg: DictConfig, data: SequenceData) -> None:
    """Raise UserError if a share of the batches is less than one batch; Lightning finds that only after training."""
    for name, loader in (("val", data.val_dataloader), ("test", data.test_dataloader)):
        limit = cfg.trainer.get(f"limit_{name}_batches")
        if type(limit) is not float or not 0 < limit < 1:
            continue
        data.prepare_data()  # counting reads it
        if int(limit * (batches := len(loader()))) == 0:
            raise UserError(
                f"trainer.limit_{name}_batches={limit} of {batches} batches is less than one. Use a whole number of "
                f"batches, or a larger share."
            )


def check_task(cfg: DictConfig) -> None:
    """Build the data module, and the task with a network that has shapes but no weights.

    Data are read, and downloaded if they are missing, only where a schedule or a share needs the number of batches.

    Raises:
        UserError: a component refuses its options, the text does not exist, or the task lacks a monitored metric.
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
    ours = str(cfg.model.get("_target_")).startswith("gridlstm.")  # other models may need real weights to be built
    if not ours or cfg.match.parameters_to or cfg.match.flops_to:
        return
    try:
        with torch.device("meta"):
            task = make_task(cfg, spec)
    except RuntimeError:
        return  # too large for any memory; the run itself explains it
    check_monitors(cfg, task)


def check_monitors(cfg: DictConfig, task: Task) -> None:
    """Raise UserError if a monitored name is not a metric of the task, or its mode prefers worse values."""
    names = [f"val/{name}" for name in task.metric_names]
    nodes = {f"callbacks.{name}": node for name, node in (cfg.callbacks or {}).items() if node}
    for path, node in {"task": cfg.task, **nodes}.items():
        monitor, mode = node.get("monitor"), node.get("mode")
        if monitor is None and path != "task":
            continue
        if monitor not in names:
            raise UserError(f"{path}.monitor must be one of {', '.join(names)}, got {monitor!r}.")
        higher = task.higher_is_better(monitor.removeprefix("val/"))
        if higher is not None and mode is not None and mode != (right := "max" if higher else "min"):
            raise UserError(
                f"{path}.mode={mode} prefers the worst value of {monitor}, of which "
                f"{'higher' if higher else 'lower'} values are better. Use {path}.mode={right}."
            )


def check_callbacks(cfg: DictConfig) -> None:
    """Build the callbacks, which have no effect until a trainer calls them.

    Raises:
        UserError: a callback refuses its options.
    """
    if cfg.run.dir is None:  # a sweep job that has not started has no directory
        cfg = cfg.copy()
        cfg.run.dir = "."
    for name in _callbacks(cfg):
        _make(cfg, f"callbacks.{name}")()


def _callbacks(cfg: DictConfig) -> list[str]:
    """Return the names of the callbacks in use."""
    unused = () if cfg.trainer.get("enable_progress_bar", True) else ("progress",)
    names = [name for name, node in (cfg.callbacks or {}).items() if node and name not in unused]
    # It puts the trained weights back at the end of a validation, after all others have used the averaged ones.
    return sorted(names, key=lambda name: name == "weight_averaging")


def check_optimizer(cfg: DictConfig) -> None:
    """Build the optimizer and the learning rate schedule for a dummy parameter.

    Raises:
        UserError: the optimizer or schedule refuses its options, or the learning rate is 0.
    """
    optimizer = _make(cfg, "optimizer")([torch.zeros(1)])
    if optimizer.defaults.get("lr") == 0:
        raise UserError("optimizer.lr must be above 0, got 0: the network would not learn.")
    eps = optimizer.defaults.get("eps")
    if cfg.trainer.precision == "16-true" and isinstance(eps, float) and torch.tensor(eps).half() == 0:
        raise UserError(
            f"optimizer.eps={eps} rounds to 0 in trainer.precision=16-true, and steps would be divided by 0. Use "
            f"optimizer.eps=1e-4, or trainer.precision=bf16-true."
        )
    if cfg.scheduler and cfg.scheduler.get("steps_per_epoch", 0) is None:  # filled in once the data is known
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
                "this schedule needs the length of the training, which has no end. Set trainer.max_steps or "
                "trainer.max_time."
            )


def _with_epochs(cfg: DictConfig, data: SequenceData) -> DictConfig:
    """Return the configuration with the steps of one epoch of the data, if the schedule needs that number."""
    if not cfg.scheduler or cfg.scheduler.get("steps_per_epoch", 0) is not None:
        return cfg
    data.prepare_data()  # counting reads it
    if data.batches_per_epoch is None:
        return cfg
    cfg = cfg.copy()
    cfg.scheduler.steps_per_epoch = data.batches_per_epoch / cfg.trainer.accumulate_grad_batches
    return cfg


def check_types(node: DictConfig, path: str) -> None:
    """Refuse unknown options and values whose type differs from the component's signature, such as 3 for a bool.

    Only plain values are checked: true and false, numbers, text and null.

    Raises:
        UserError: an option does not exist or its value has the wrong type; the message gives the path of the option.
    """
    for name, value in node.items():
        if isinstance(value, DictConfig):
            check_types(value, f"{path}.{name!s}")
    if "_target_" not in node:
        return
    try:
        target = get_object(node._target_)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}._target_={node._target_} cannot be loaded: {' '.join(str(error).split())}") from error
    hints = annotations(target)
    accepted = inspect.signature(target).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted):
        names = [parameter.name for parameter in accepted]
        if unknown := [name for name in node if not str(name).startswith("_") and name not in names]:
            raise UserError(f"{path}.{unknown[0]!s} does not exist. {node._target_} has {', '.join(names)}.")
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
            plain = [_KIND_NAMES[kind] for kind in kinds if kind in _KIND_NAMES]  # a Tensor cannot be typed
            expected = " or ".join(plain or [kind.__name__ for kind in kinds])
            raise UserError(f"{path}.{name!s} must be {expected}, got {value!r}.")


def _check_elements(values: ListConfig, hint: Any, path: str) -> None:
    """Check a list of objects, such as ``Sequence[Regularizer]``: each element must be a node with a ``_target_``."""
    (kind, *_) = get_args(hint) or (None,)
    objects = isinstance(kind, type) and kind not in _KIND_NAMES
    for number, value in enumerate(values):
        if isinstance(value, DictConfig) and "_target_" in value:
            check_types(value, f"{path}[{number}]")
        elif objects:
            raise UserError(f"{path} must be a list of nodes such as {{_target_: …}}, but contains {value!r}.")


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
    """Return the classes that an annotation allows; () if it allows anything or something that is not a class."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds: list[Any] = []
    for part in parts:
        kinds += map(type, get_args(part)) if get_origin(part) is Literal else [get_origin(part) or part]
    return tuple(dict.fromkeys(kinds)) if all(isinstance(kind, type) for kind in kinds) else ()


def _make(cfg: DictConfig, path: str) -> Any:
    """Return a callable that builds the object of a ``_target_`` node with its options; nested nodes are objects."""
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
            # A constructor raises one of these if it refuses its options or lacks a package.
            raise UserError(refusal(error, cfg, path)) from error

    return call


def _reason(error: InstantiationException, cfg: DictConfig, path: str) -> str:
    """Return the error inside Hydra's wrapping: the refusal of the node at fault, or Hydra's own message."""
    node = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
    cause = error.__cause__
    return refusal(cause, cfg, node[1]) if node and isinstance(cause, ValueError) else f"{path}: {error}"
