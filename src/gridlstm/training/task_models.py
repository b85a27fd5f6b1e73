"""Which model suits which task: what a task's objective takes is the type of its ``model`` argument."""

import inspect
from typing import Any, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig

from gridlstm.config import choices, compose_model
from gridlstm.errors import UserError


def annotations(target: Any) -> dict[str, Any]:
    """The types of what a class or a function is called with, by name."""
    return get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)


def accepted(task: DictConfig) -> type | None:
    """The class of the models that a task takes; None where its objective does not say."""
    objective = get_object(task.objective._target_)
    kind = annotations(objective).get("model")
    return kind if isinstance(kind, type) else None


def fits(model: DictConfig, task: DictConfig) -> bool:
    """Whether the nodes of a model and a task go together; what says nothing of its type is not refused here."""
    kind, target = accepted(task), get_object(model._target_)
    return kind is None or not isinstance(target, type) or issubclass(target, kind)


def check_fit(cfg: DictConfig, option: str = "model") -> None:
    """Raises UserError for a model that the task cannot take, with those that it can.

    Args:
        option: where the model was named.
    """
    for node, name in ((cfg.model, f"{option}={cfg.run.model}"), (cfg.task.objective, f"task={cfg.run.task}")):
        if (wrong := _unreadable(node)) is not None:
            raise UserError(f"{name}: _target_={node._target_} cannot be loaded: {wrong}")
    if fits(cfg.model, cfg.task):
        return
    kind = accepted(cfg.task)
    assert kind is not None, "nothing is refused without a type"
    nodes = {name: compose_model(name) for name in choices("model")}
    fitting = [name for name, node in nodes.items() if _unreadable(node) is None and fits(node, cfg.task)]
    raise UserError(
        f"task={cfg.run.task} takes a {kind.__name__} and {option}={cfg.run.model} is none; models that fit: "
        f"{', '.join(fitting) or 'none here'}."
    )


def _unreadable(node: DictConfig) -> str | None:
    """Why the class of a node cannot be had, or its annotations not be resolved; None where all is well."""
    try:
        target = get_object(node._target_)
        annotations(target)
    except (ImportError, NameError, ValueError) as error:
        return " ".join(str(error).split())
    return None
