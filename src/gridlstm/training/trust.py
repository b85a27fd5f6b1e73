"""Restrict the code that the configuration of a run directory may name, because somebody else may have written it."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError

_OURS = ("cell", "cells", "data", "models", "regularizers", "schedules", "tasks")
"""Modules of this package that define networks, data and tasks."""


def check_trusted(config: DictConfig, nodes: Sequence[str], trust: Sequence[str]) -> None:
    """Refuse classes outside this package's networks, data and tasks, unless the user trusts them.

    Only modules of this package are imported.

    Args:
        config: configuration of the run.
        nodes: nodes of ``config`` that will be built.
        trust: names of trusted packages or modules.

    Raises:
        UserError: a class is not trusted; the message gives the option to type.
    """
    foreign = foreign_targets(config, nodes)
    for option, target in foreign.items():
        if not any(target == name or target.startswith(f"{name}.") for name in trust):
            raise UserError(
                f"{option}={target} is code named by the run directory, and not part of gridlstm's networks and tasks. "
                f"If you know the code and trust the author of the run, add {trust_option(foreign)}"
            )
        if find_spec(package := target.partition(".")[0]) is None:
            raise UserError(
                f"{option}={target} cannot be imported: there is no package {package} here. Run the command where the "
                f"run was trained, or with that directory on PYTHONPATH."
            )


def foreign_targets(config: DictConfig, nodes: Sequence[str]) -> dict[str, str]:
    """Return every ``_target_`` in some nodes that is not this package's, by the path of its option."""
    return {path: target for path, target in _targets(config, nodes) if not _is_ours(target)}


def trust_option(foreign: Mapping[str, str]) -> str:
    """Return the option that trusts ``foreign_targets``."""
    return "trust=" + ",".join(dict.fromkeys(target.rpartition(".")[0] for target in foreign.values()))


def _targets(config: DictConfig, nodes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the value of every ``_target_`` in some nodes."""
    for name in nodes:
        node = OmegaConf.select(config, name)
        yield from _walk(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node, name)


def _walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield f"{path}._target_", str(value["_target_"])
        for name, child in value.items():
            yield from _walk(child, f"{path}.{name}")
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _walk(child, f"{path}[{number}]")


def _is_ours(target: str) -> bool:
    """Return True for the trainer, and for classes of this package's networks, data and tasks.

    Check where the class is defined, because gridlstm.data.text.os.system belongs to os.
    """
    if target == "lightning.Trainer":
        return True
    if not any(target.startswith(f"gridlstm.{name}.") for name in _OURS):
        return False
    try:
        found = get_object(target)
    except (ImportError, ValueError):
        return True  # building it will report that it does not exist
    return isinstance(found, type) and found.__module__.startswith("gridlstm.")
