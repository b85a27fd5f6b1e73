"""Match models with tasks, by the type of the ``model`` argument of a task's objective."""

import inspect
from typing import Any, get_type_hints

from hydra._internal.utils import _locate
from hydra.utils import get_object
from omegaconf import DictConfig

from gridlstm.config import choices, compose_model
from gridlstm.errors import UserError


def annotations(target: Any) -> dict[str, Any]:
    """Return the types of the arguments of a class or function, by name."""
    return get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)


def accepted(task: DictConfig) -> type | None:
    """Return the class of models that a task takes, or None if its objective does not specify one."""
    objective = get_object(task.objective._target_)
    kind = annotations(objective).get("model")
    return kind if isinstance(kind, type) else None


def fits(model: DictConfig, task: DictConfig) -> bool:
    """Return True if the model and task fit together, or if the model's type is unknown."""
    kind, target = accepted(task), get_object(model._target_)
    return kind is None or not isinstance(target, type) or issubclass(target, kind)


def check_fit(cfg: DictConfig, option: str = "model") -> None:
    """Raise UserError for a model that does not fit the task; the message lists the models that fit.

    Args:
        cfg: configuration of the run.
        option: option that named the model.
    """
    for node, name in ((cfg.model, f"{option}={cfg.run.model}"), (cfg.task.objective, f"task={cfg.run.task}")):
        if (wrong := unreadable(node)) is not None:
            raise UserError(f"{name}: _target_={node.get('_target_')} cannot be loaded: {wrong}")
    if fits(cfg.model, cfg.task):
        return
    kind = accepted(cfg.task)
    assert kind is not None, "a model is refused only by its type"
    nodes = {name: compose_model(name) for name in choices("model")}
    fitting = [name for name, node in nodes.items() if unreadable(node) is None and fits(node, cfg.task)]
    article = "an" if kind.__name__.startswith(("A", "E", "I", "O")) else "a"
    raise UserError(
        f"task={cfg.run.task} takes {article} {kind.__name__}, but {option}={cfg.run.model} is not one. Models that "
        f"fit: {', '.join(fitting) or 'none here'}."
    )


def unreadable(node: DictConfig) -> str | None:
    """Return why the class of a node cannot be imported or its annotations resolved; None if they can."""
    if "_target_" not in node:
        return "its file names no class"
    try:
        annotations(_locate(node._target_))  # get_object would also log the error, in several lines
    except (ImportError, NameError, ValueError) as error:
        return " ".join(str(error).split())
    return None
