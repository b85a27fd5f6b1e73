"""The one place where configuration becomes objects: the wiring diagram of a run."""

from typing import Any, NamedTuple

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

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


def _make(cfg: DictConfig, path: str) -> Any:
    """The callable that a ``_target_`` node describes, its options bound; nested nodes are objects already."""
    node: Any = cfg
    for name in path.split("."):
        node = node[name]
    try:
        make = instantiate(node, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{path}: {_reason(error)}") from error

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except TypeError as error:
            # The usual cause is an option that the component does not have, or lacks; the original keeps its trace.
            raise UserError(f"{path} ({node._target_}): {error}") from error

    return call


def _reason(error: BaseException) -> str:
    """What went wrong inside Hydra's wrapping: the innermost message of ours, or Hydra's own."""
    cause = error.__cause__
    return str(cause) if isinstance(cause, UserError) else str(error)
