"""Which code the configuration of a run directory may name: a run that somebody else hands on could name any."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from gridlstm.errors import UserError

_OURS = ("cell", "cells", "data", "models", "regularizers", "schedules", "tasks")
"""Modules of this package whose classes a network, its data and its task are made of."""


def check_trusted(config: DictConfig, nodes: Sequence[str], trust: Sequence[str]) -> None:
    """Refuse what is neither a class of this package's networks, data and tasks nor named by the user.

    Nothing but this package is imported.

    Args:
        nodes: of ``config``, that are to be made.
        trust: names of packages or modules.

    Raises:
        UserError: with the option and what to type.
    """
    foreign = foreign_targets(config, nodes)
    for option, target in foreign.items():
        if not any(target == name or target.startswith(f"{name}.") for name in trust):
            raise UserError(
                f"{option}={target} is code that the run directory names, and no part of gridlstm's networks and "
                f"tasks. If you know it, and trust who wrote the run: {trust_option(foreign)}"
            )
        if find_spec(package := target.partition(".")[0]) is None:
            raise UserError(
                f"{option}={target} cannot be imported, there is no package {package} here: give the command where the "
                f"run was trained, or with that directory on PYTHONPATH."
            )


def foreign_targets(config: DictConfig, nodes: Sequence[str]) -> dict[str, str]:
    """Return every ``_target_`` in some nodes that is not this package's, by the path of its option."""
    return {path: target for path, target in _targets(config, nodes) if not _is_ours(target)}


def trust_option(foreign: Mapping[str, str]) -> str:
    """Return the option that trusts ``foreign_targets``, as one types it."""
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
    """Return True for a class of this package, by the name of a module that has such classes, and for the trainer.

    The class itself says where it is defined: gridlstm.data.text.os.system is of os.
    """
    if target == "lightning.Trainer":
        return True
    if not any(target.startswith(f"gridlstm.{name}.") for name in _OURS):
        return False
    try:
        found = get_object(target)
    except (ImportError, ValueError):
        return True  # whoever makes it says that there is none
    return isinstance(found, type) and found.__module__.startswith("gridlstm.")
