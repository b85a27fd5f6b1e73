"""The one place where configuration becomes objects: the wiring diagram of a run."""

import inspect
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig

from gridlstm.data.base import SequenceData
from gridlstm.errors import UserError
from gridlstm.tasks.base import SequenceTask


class Run(NamedTuple):
    """What a run is made of."""

    data: SequenceData
    task: SequenceTask
    trainer: L.Trainer


def build(cfg: DictConfig) -> Run:
    """config -> (data, task, trainer).

    Sizes flow in Python: the data knows its symbols, the model is made for them, the task joins both.

    Raises:
        UserError: a component refused its options.
    """
    data: SequenceData = _make(cfg, "task.data")()
    data.prepare_data()
    data.setup("fit")
    model = _make(cfg, "model")(input_size=data.spec.input_size)
    task: SequenceTask = _make(cfg, "task.objective")(
        model=model,
        spec=data.spec,
        optimizer=_make(cfg, "optimizer"),
        scheduler=_make(cfg, "scheduler") if cfg.scheduler else None,
    )
    trainer: L.Trainer = _make(cfg, "trainer")(
        callbacks=[_make(cfg, f"callbacks.{name}")() for name in cfg.callbacks or ()],
        logger=[_make(cfg, f"logger.{name}")() for name in cfg.logger or ()],
    )
    return Run(data, task, trainer)


def check_types(node: DictConfig, path: str) -> None:
    """Refuses values of another type than the component's signature names: a truthy 3 is no ``tied: bool``.

    Only plain types are checked, true and false, numbers, text and null, and choices among them.

    Raises:
        UserError: with the path of the option.
    """
    for name, value in node.items():
        if isinstance(value, DictConfig):
            check_types(value, f"{path}.{name!s}")
    if "_target_" not in node:
        return
    target = get_object(node._target_)
    hints = get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)
    for name, value in node.items():
        if not (allowed := _plain_types(hints.get(str(name)))) or isinstance(value, DictConfig | ListConfig):
            continue
        if type(value) not in allowed and not (type(value) is int and float in allowed):
            expected = " or ".join(_TYPE_NAMES[kind] for kind in allowed)
            raise UserError(f"{path}.{name!s} must be {expected}, got {value!r}.")


_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def _plain_types(hint: Any) -> tuple[type, ...]:
    """The plain types of an annotation; () where it allows others too."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    parts = tuple(
        kind for part in parts for kind in (map(type, get_args(part)) if get_origin(part) is Literal else (part,))
    )
    return tuple(dict.fromkeys(parts)) if all(part in _TYPE_NAMES for part in parts) else ()


def _make(cfg: DictConfig, path: str) -> Any:
    """The callable that a ``_target_`` node describes, its options bound; nested nodes are objects already."""
    node: Any = cfg
    for name in path.split("."):
        node = node[name]
    check_types(node, path)
    try:
        make = instantiate(node, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{path}: {_reason(error)}") from error

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except (TypeError, ValueError, MisconfigurationException) as error:
            # A constructor refuses its options in one of these three ways.
            raise UserError(f"{path} ({node._target_}): {error}") from error

    return call


def _reason(error: BaseException) -> str:
    """What went wrong inside Hydra's wrapping: the innermost message of ours, or Hydra's own."""
    cause = error.__cause__
    return str(cause) if isinstance(cause, UserError) else str(error)
